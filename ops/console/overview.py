"""The first page: whether what is due is sent."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ops.console.edge import SEEN, page

router = APIRouter(dependencies=[SEEN])


@router.get("/")
async def overview(request: Request) -> Response:
    """The figures."""
    return page(request, "overview.html")
