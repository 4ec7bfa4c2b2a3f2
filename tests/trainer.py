"""A fast stand-in for `samsvae train` in tests of jobs.

It runs until there is a file `end` in its run folder, which has the state to end with. It stops
when asked to.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

options = dict(argument.partition("=")[::2] for argument in sys.argv)
run = Path(options["--output"])
stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
own = {"pid": os.getpid(), "started": stat[19], "boot": boot}
own |= {"device": options["--device"], "steps": 100}


def say(state, **more):
    temporary = run / "status.json.new"
    temporary.write_text(json.dumps(own | {"state": state, "step": 40, "epoch": 4, **more}))
    temporary.replace(run / "status.json")


def stop(*_):
    say("stopped")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
with (run / "starts.txt").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\n")
(run / "config.json").write_text("{}")
sys.stdout.write("training\n")
sys.stdout.flush()
say("training", step_seconds=0.5)
while not (run / "end").exists():
    time.sleep(0.01)
state = (run / "end").read_text()
(run / "end").unlink()
if state == "finished":
    (run / "manifest.json").write_text("{}")
say(state, message="The loss became nan." if state == "failed" else "")
