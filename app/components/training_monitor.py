"""Following training runs on the page Train: progress, curves, buttons and the queue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts
from app.figures import model_plots
from app.server import queue, runs, time_estimate
from app.server.runs import Job
from app.session import page as state
from app.session import results, training, url

MOMENT = 2  # seconds between refreshes
STATES = {
    "waiting": (":material/hourglass_empty:", "Waits for its turn"),
    "running": (":material/play_arrow:", "Running"),
    "stopping": (":material/pending:", "Stops at the end of this epoch"),
    "stopped": (":material/pause:", "Stopped"),
    "failed": (":material/error:", "Failed"),
    "dead": (":material/power_off:", "Its process is gone"),
    "finished": (":material/check_circle:", "Finished"),
}


def following() -> None:
    """Draw the choice of run; the part below it refreshes itself."""
    st.header("Trainings", divider="gray")
    found = {job.name: job for job in training.runs()}
    if not found:
        st.info("Nothing has been trained here yet.")
        return
    url.unknown_option("run", list(found), "training")
    busy = [name for name, job in found.items() if job.state in runs.BUSY]
    names = list(found)
    chosen = st.selectbox(
        "Training",
        names,
        names.index(busy[0]) if busy else 0,
        key="run",
        bind="query-params",
        help="The newest first.",
    )
    live(str(chosen), tuple(job.state for job in found.values()))


@st.fragment(run_every=MOMENT)
def live(name: str, states: tuple[str, ...]) -> None:
    """Draw a run as it is now, and the table of all runs."""
    found = training.runs()
    job = next((job for job in found if job.name == name), None)
    if job is None or tuple(job.state for job in found) != states:
        st.rerun()  # the picker and the models to open have changed
        return
    one(job)
    if len(found) > 1:
        st.subheader("All trainings")
        st.dataframe(table(found), hide_index=True, alt="Every training with its state")


def table(found: list[Job]) -> pd.DataFrame:
    """Return a table of runs: running ones, then the queue in its order, then the others."""
    order = sorted(found, key=lambda job: (*ORDER.get(job.state, (2,)), sign(job) * job.place))
    return pd.DataFrame(
        {
            "training": [job.name for job in order],
            "state": [STATES[job.state][1] for job in order],
            "device": [job.device for job in order],
            "epoch": [job.epoch for job in order],
            "done": [f"{done(job):.0%}" for job in order],
        }
    )


ORDER = {"running": (0,), "stopping": (0,), "waiting": (1,)}


def sign(job: Job) -> int:
    return 1 if job.state == "waiting" else -1


def done(job: Job) -> float:
    return 1.0 if job.state == "finished" else min(1.0, job.step / job.steps) if job.steps else 0.0


def one(job: Job) -> None:
    icon, words = STATES[job.state]
    phase = f", {job.phase}" if job.phase in ("reading", "making tables") else ""
    st.markdown(f"{icon} **{words}{phase}** on {job.device}, epoch {job.epoch:,}")
    st.progress(done(job), progress_words(job))
    if job.message:
        (st.error if job.state == "failed" else st.warning)(state.plain(job.message))
    buttons(job)
    history = runs.history(job.path)
    if len(history) > 1:
        curves(history, job.name)
    elif job.state in runs.BUSY:
        st.caption("Curves are drawn after the second epoch.")
    log = runs.end_of_log(job.path)
    with st.expander("End of the log", expanded=job.state in ("failed", "dead")):
        st.code(log or "Nothing yet.", language=None, wrap_lines=True)


def progress_words(job: Job) -> str:
    if job.state == "finished":
        return f"{job.step:,} steps; it took {time_estimate.in_words(job.seconds)}"
    if job.phase == "making tables":
        return "The last step is done; making tables, enrichment and maps of cells"
    if not job.steps:
        return "No step yet" if job.step == 0 else f"{job.step:,} steps"
    left = (
        ""
        if np.isnan(job.seconds_left)
        else f", about {time_estimate.in_words(job.seconds_left)} left"
    )
    going = left if job.state == "running" else ""
    return f"{job.step:,} of {job.steps:,} steps{going}"


def buttons(job: Job) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if job.state in ("running", "waiting"):
            act("Stop", "stop", queue.stop, job)
        if job.state == "stopping":
            act("Stop at once", "stop_now", queue.stop, job, True)
        if job.state in ("stopped", "failed", "dead") and job.is_own:
            device = device_now(job)
            act("Resume", "resume", queue.resume, job, device)
            if device == "cpu" and job.device.startswith("cuda"):
                st.caption(
                    "It was trained on a GPU, but there is none here, so it continues on the CPU."
                )
        if job.state in ("stopped", "failed", "dead") and not job.is_own:
            st.caption(state.plain(queue.how_to_resume(job)))
        if job.state == "finished":
            finished(job)
        if job.state not in runs.BUSY and (job.is_own or job.state != "finished"):
            with st.popover("Discard", icon=":material/delete:", type="tertiary"):
                st.markdown(f"Remove {state.plain(job.name)} and all its files, for everyone?")
                act("Remove it", "discard", queue.discard, job)


def device_now(job: Job) -> str:
    """Return the device a run can resume on: its own if it is here, else the CPU."""
    return "cpu" if job.device == "cpu" else time_estimate.device()


def act(label: str, key: str, change: Callable[..., object], job: Job, *options: object) -> None:
    icons = {"resume": ":material/play_arrow:", "discard": ":material/delete:"}
    st.button(
        label,
        key=f"{key}_run",
        icon=icons.get(key, ":material/stop:"),
        on_click=training.change_run,
        args=(change, job.name, *options),
    )


def finished(job: Job) -> None:
    """Draw links that open a finished model, and its download."""
    for page, label in (("overview", "Open it"), ("compose", "Open it in Compose")):
        url.link(
            page,
            label,
            ":material/arrow_forward:",
            {"model": job.name},
        )
    st.download_button(
        "Download",
        lambda: results.packed(job.path),
        f"{job.name}.zip",
        mime="application/zip",
        key="download_run",
        icon=":material/download:",
        on_click="ignore",
        help="The model with all its tables as one zip. The page Data opens it elsewhere.",
    )


def curves(history: pd.DataFrame, run: str) -> None:
    """Draw the training curves; they are redrawn after each epoch and keep a run's zoom."""
    left, right = st.columns(2, gap="large")
    dark = charts.dark()
    with left:
        charts.live_chart(
            model_plots.history(history, dark).update_layout(uirevision=run),
            "training_bounds",
            "Bounds of training and validation cells and active mask entries by epoch",
        )
    with right:
        charts.live_chart(
            model_plots.training_state(history, dark).update_layout(uirevision=run),
            "training_state",
            "Mechanisms in use and gradient norm by epoch",
        )
