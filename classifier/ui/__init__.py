"""The browser's side: a page for people, and a Swagger page over the API's description."""
