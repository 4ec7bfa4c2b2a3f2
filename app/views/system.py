"""The page System: device, memory, disk, cache, models, training runs, versions and limits."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.server import logs, status
from app.session import access, bundles, training, url
from app.session import page as state
from samsvae_core.system import cache

GIB = 2**30
GROUPS = {
    "running": ("running", "stopping"),
    "waiting": ("waiting",),
    "done": ("finished",),
    "ended early": ("stopped", "failed", "dead"),
}
COLUMNS = ["name", "state", "device", "step", "steps", "seconds"]


def system() -> None:
    st.title("System")
    st.markdown("What this server runs on, what it has left, and its limits.")
    left, right = st.columns(2, gap="large")
    with left:
        machine()
    with right:
        space()
    models()
    trainings()
    versions_and_limits()


def machine() -> None:
    st.header("Machine", divider="gray")
    held, whole = status.memory()
    n_cores, n_threads = status.cores()
    rows = {
        "Trains on": status.device(),
        "Processors": f"{n_cores:g}, of which torch uses {n_threads}",
        "Memory of the server": f"{gib(held)} of {gib(whole)}",
    }
    for gpu in status.gpus():
        rows[f"GPU {gpu.name}"] = f"{gib(gpu.used)} of {gib(gpu.total)} in use"
    listed(rows)


def space() -> None:
    st.header("Disk", divider="gray")
    listed(
        {
            place.what: f"{gib(place.free)} free of {gib(place.total)}, in {place.path}"
            for place in status.places()
        }
    )
    n = cache.size()
    st.markdown(
        f"The cache holds {n / 2**20:,.1f} MB: shifts of models and results of gene-set tests, "
        "which can be computed again. When it is full, what was used longest ago goes first."
    )
    st.button(
        "Clear the cache",
        key="clear cache",
        icon=":material/delete_sweep:",
        on_click=clear,
        disabled=not n,
    )


@access.errors()
def clear() -> None:
    """Clear the cache; a callback."""
    removed = cache.clear()
    logs.event("cache cleared", n_bytes=removed)
    st.toast(f"{removed / 2**20:,.1f} MB were removed.")


def models() -> None:
    st.header("Models", divider="gray")
    whole, broken = bundles.available(), bundles.broken()
    names = ", ".join(f"**{state.plain(name)}**" for name in sorted(whole))
    st.markdown(f"{len(whole)} can be opened{': ' if whole else ''}{names}.")
    for name, problem in broken.items():
        st.warning(f"**{state.plain(name)}** cannot be opened. {state.plain(problem)}")


def trainings() -> None:
    st.header("Trainings", divider="gray")
    found = training.runs()
    if not found:
        st.markdown("There is no run yet.")
        return
    n = {state: sum(job.state in states for job in found) for state, states in GROUPS.items()}
    st.markdown(", ".join(f"{number} {state}" for state, number in n.items()) + ".")
    st.dataframe(
        pd.DataFrame(found)[COLUMNS],
        hide_index=True,
        alt="Runs with their state, device, steps and seconds of training",
        column_config={
            "name": "run",
            "seconds": st.column_config.NumberColumn("trained", format="%d s"),
        },
    )
    url.link("train", "Open Train", ":material/arrow_forward:")


def versions_and_limits() -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.header("Versions", divider="gray")
        listed(status.versions())
    with right:
        st.header("Limits", divider="gray")
        upload = st.get_option("server.maxUploadSize")
        listed({"STREAMLIT_SERVER_MAX_UPLOAD_SIZE": f"{upload:,} MB", **status.limits()})
        st.caption("Each is set by the environment variable of that name.")


def listed(rows: dict[str, str]) -> None:
    for name, value in rows.items():
        st.markdown(f"**{state.plain(name)}**  \n{state.plain(value)}")


def gib(n: int | None) -> str:
    return "\u2013" if n is None else f"{n / GIB:.1f} GiB"


state.page(system)
