// The page for people: pictures in, bars and heat maps out. It asks /predictions and /explanations.

const MOST_CARDS = 20; // older pictures make room for new ones
const $ = (id) => document.getElementById(id);
const pictures = new Map(); // of each card on the page: the file, and where the browser keeps it

let served = [];
let begun; // what begin() has promised
let waiting = 0; // cards that wait for their answers

// Learn what answers, once; and again where that failed, for TorchServe may be back.
function begin() {
  begun ??= look().catch((error) => {
    begun = undefined;
    throw error;
  });
  return begun;
}

async function look() {
  served = await json("/served");
  fill($("model"), served.map((model) => [model.name, model.name]), $("model").value);
  $("model-label").hidden = served.length < 2;
  showVersions();
}

// Who comes back to the page may have promoted a version meanwhile.
async function lookAgain() {
  if (document.hidden) return;
  const [version, other] = ["version", "other"].map((id) => $(id).value);
  await look();
  choose("version", version);
  choose("other", other);
}

function choose(id, value) {
  if ([...$(id).options].some((option) => option.value === value)) $(id).value = value;
}

function listen() {
  $("model").addEventListener("change", () => { showVersions(); askAgain(); });
  for (const id of ["version", "other", "explain"]) $(id).addEventListener("change", askAgain);
  $("settings").addEventListener("submit", (event) => event.preventDefault());
  $("file").addEventListener("change", () => { add([...$("file").files]); $("file").value = ""; });
  document.addEventListener("visibilitychange", () => lookAgain().catch((error) => say(error.message)));
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    add([...event.dataTransfer.files]);
  });
}

function showVersions() {
  const model = served.find((each) => each.name === $("model").value) ?? served[0];
  const versions = [...model.versions].reverse();
  const named = versions.map((v) => [v, v === model.default ? `${v} (default)` : v]);
  fill($("version"), named, model.default);
  fill($("other"), [["", "nothing"], ...named]);
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

async function showSamples() {
  for (const name of await json("/samples")) {
    const button = document.createElement("button");
    const image = new Image();
    image.src = `/samples/${encodeURIComponent(name)}`;
    image.alt = `Try ${name}`;
    button.append(image);
    button.addEventListener("click", () => {
      fetched(image.src)
        .then((answer) => answer.blob())
        .then((data) => add([new File([data], name, { type: data.type })]))
        .catch((error) => say(error.message));
    });
    $("samples").append(button);
  }
}

function add(files) {
  const left = files.length - MOST_CARDS;
  for (const file of files.slice(0, MOST_CARDS)) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    const address = URL.createObjectURL(file);
    card.querySelector("img").src = address;
    card.querySelector("img").alt = file.name;
    card.querySelector("figcaption").textContent = file.name;
    pictures.set(card, { file, address });
    $("results").prepend(card);
    while ($("results").children.length > MOST_CARDS) remove($("results").lastElementChild);
    ask(card);
  }
  $("hint").hidden = left <= 0;
  $("hint").textContent = `The first ${MOST_CARDS} pictures are shown; ${left} are left out. \`classifier predict\` takes any number.`;
}

function remove(card) {
  URL.revokeObjectURL(pictures.get(card).address);
  pictures.delete(card);
  card.remove();
}

function askAgain() {
  for (const card of pictures.keys()) ask(card);
}

// Ask the versions that are chosen; what an earlier choice still brings is dropped.
async function ask(card) {
  try {
    await begin(); // a picture can come before it is known what answers
  } catch (error) {
    card.querySelector(".answers").replaceChildren(failure(error));
    return;
  }
  if (!pictures.has(card)) return;
  const versions = [...new Set([$("version").value, $("other").value].filter(Boolean))];
  const asked = versions.map((version) => one(card, version));
  card.asked = asked;
  waiting += 1;
  say("Asking …");
  const answers = await Promise.all(asked);
  waiting -= 1;
  if (!waiting) say("");
  if (card.asked === asked) card.querySelector(".answers").replaceChildren(...answers);
}

async function one(card, version) {
  const section = $("answer").content.firstElementChild.cloneNode(true);
  section.querySelector("h2").textContent = `Version ${version}`;
  const { file, address } = pictures.get(card);
  const path = `${encodeURIComponent($("model").value)}/${encodeURIComponent(version)}`;
  const wantsMap = $("explain").checked;
  try {
    const asked = [`/predictions/${path}`, ...(wantsMap ? [`/explanations/${path}`] : [])];
    const [probabilities, explanation] = await Promise.allSettled(asked.map((each) => json(each, file)));
    // Whatever the order in the JSON, JavaScript puts labels that are numbers first.
    const likeliest = Object.entries(value(probabilities)).sort(([, one], [, other]) => other - one);
    section.querySelector("tbody").append(...likeliest.map(row));
    if (wantsMap) showMap(section.querySelector(".map"), value(explanation), address);
  } catch (error) {
    section.append(failure(error)); // below the labels, if it is the explanation that failed
  }
  return section;
}

// What a settled promise brought; an error, if that is what it was.
function value(settled) {
  if (settled.status === "rejected") throw settled.reason;
  return settled.value;
}

function failure(error) {
  const told = document.createElement("p");
  told.className = "error";
  told.textContent = error.message;
  return told;
}

function row([label, probability]) {
  const line = document.createElement("tr");
  const percent = `${(100 * probability).toFixed(1)} %`;
  const [name, bar, value] = ["th", "td", "td"].map((tag) => document.createElement(tag));
  name.scope = "row";
  name.textContent = label;
  bar.className = "bar";
  bar.ariaHidden = "true";
  bar.append(document.createElement("div"));
  bar.firstChild.style.width = percent.replace(" ", "");
  value.className = "percent";
  value.textContent = percent;
  line.append(name, bar, value);
  return line;
}

function showMap(figure, { label, map }, address) {
  figure.querySelector("img").src = address;
  figure.querySelector("b").textContent = label;
  const canvas = figure.querySelector("canvas");
  canvas.ariaLabel = `What speaks for ${label}, and what against it`;
  [canvas.width, canvas.height] = [map[0].length, map.length];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  map.flat().forEach((value, at) => {
    const colour = value > 0 ? [255, 106, 0] : [22, 128, 255];
    pixels.data.set([...colour, 255 * Math.min(1, Math.sqrt(Math.abs(value)))], 4 * at);
  });
  context.putImageData(pixels, 0, 0);
  figure.hidden = false;
}

async function json(path, body) {
  return (await fetched(path, body)).json();
}

// Fetch what is there; an error says what the server says.
async function fetched(path, body) {
  let answer;
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    answer = await fetch(path, body && { method: "POST", headers, body });
  } catch {
    // Nor is anything sent of a folder, or of a file that was changed since.
    if (body && !(await isReadable(body))) throw new Error("This can't be read any more: choose it again");
    throw new Error("No answer: is `classifier ui` still running?");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const remark = answer.status === 413 ? "the picture is too large" : answer.statusText;
  throw new Error(told.message ?? `${answer.status}: ${remark}`);
}

function isReadable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}

function say(text) {
  $("status").textContent = text;
}

listen();
begin().catch((error) => say(error.message));
showSamples().catch((error) => say(error.message));
