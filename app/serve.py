"""The dashboard as a server, its pages behind `Door`. Start it: `streamlit run app/serve.py`."""

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from app.server import logs
from app.server.middleware import Door

logs.start()
app = App(Path(__file__).with_name("main.py"), middleware=[Middleware(Door)])
