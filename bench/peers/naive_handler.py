"""TorchServe as a beginner has it: the base handler and the usual transforms."""

import io

import torch
from PIL import Image
from torchvision import transforms
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import map_class_to_label


class NaiveHandler(BaseHandler):
    """Eager torch in float32, all defaults."""

    transform = transforms.Compose(
        [
            transforms.Resize((32, 32), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def preprocess(self, data):
        """Decode the images of a batch."""
        bodies = [row.get("data") or row.get("body") for row in data]
        images = [Image.open(io.BytesIO(body)).convert("RGB") for body in bodies]
        return torch.stack([self.transform(image) for image in images]).to(self.device)

    def postprocess(self, data):
        """Label the images of a batch."""
        top = data.softmax(1).topk(5)
        return map_class_to_label(top.values.tolist(), self.mapping, top.indices.tolist())
