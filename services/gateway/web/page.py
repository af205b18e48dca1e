"""The page and its files, read once: hand-written HTML, CSS and JavaScript, as they are in `static`."""

import hashlib
from pathlib import Path

from aiohttp import web

STATIC = Path(__file__).parent / "static"

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Nothing is loaded from elsewhere, and nothing that came as text is run."""


class PageRoutes:
    """`/` is `index.html`, `/docs` is `docs.html`; all files lie under `/page/`."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._files = {path.name: _file(path) for path in sorted(folder.iterdir()) if path.suffix in _TYPES}

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self.index), web.get("/docs", self.docs), web.get("/page/{name}", self.file)]

    async def index(self, request: web.Request) -> web.Response:
        return self._answer(request, "index.html")

    async def docs(self, request: web.Request) -> web.Response:
        return self._answer(request, "docs.html")

    async def file(self, request: web.Request) -> web.Response:
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        found = self._files.get(name)
        if found is None:
            raise web.HTTPNotFound
        body, content_type, tag = found
        headers = {**SECURITY_HEADERS, "ETag": f'"{tag}"', "Cache-Control": "no-cache"}
        if any(known.value == tag for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=headers)


def _file(path: Path) -> tuple[bytes, str, str]:
    body = path.read_bytes()
    return body, _TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:16]
