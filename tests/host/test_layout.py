"""The templates on a small screen, with classic nodes and, where the frontend has them, with Nodes 2.0."""

from __future__ import annotations

import pytest

from helpers import workflow_graphs as graphs
from helpers.frontend import ROOT, check_page, missing

OUT = ROOT / "outputs" / "host" / "layout"
LEGIBLE = 0.57
"""Below this zoom frontends leave out the text of classic nodes."""

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"missing: {', '.join(missing())}")


@pytest.fixture(scope="module")
def seen(server):
    return check_page(server.url, OUT, "layout.mjs", [str(path) for path in graphs.UI])["checked"]


@pytest.mark.parametrize("path", graphs.UI, ids=lambda path: path.stem)
def test_nothing_overlaps_and_the_text_can_be_read(seen, path, report):
    for mode, found in seen[path.stem].items():
        assert found["overlaps"] == [], mode
        assert found["zoom"] >= LEGIBLE, mode
        report(f"{path.stem}, {mode} nodes: {found['nodes']} nodes, zoom {found['zoom']:.2f}, nothing overlaps")
