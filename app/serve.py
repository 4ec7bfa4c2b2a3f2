"""The dashboard as a server: its pages behind the door. `streamlit run app/serve.py` starts it."""

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from app import logs
from app.door import Door

logs.start()
app = App(Path(__file__).with_name("main.py"), middleware=[Middleware(Door)])
