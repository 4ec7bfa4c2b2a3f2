# The dashboard on the shipped models. CPU by default; for CUDA build with --build-arg TORCH_INDEX=
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 \
    SAMSVAE_CACHE=/tmp/samsvae NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /srv/samsvae
COPY requirements.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install $(grep -o '^torch==[0-9.]*' requirements.txt) --index-url "$TORCH_INDEX"; fi \
 && pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY samsvae_core ./samsvae_core
COPY app ./app
COPY .streamlit ./.streamlit
COPY pretrained ./pretrained
RUN pip install --no-deps -e . && useradd --uid 1000 --create-home samsvae
USER samsvae

EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; b = os.environ.get('STREAMLIT_SERVER_BASE_URL_PATH', '').strip('/'); u.urlopen('http://127.0.0.1:8501/' + (b + '/' if b else '') + '_stcore/health', timeout=4)"]
CMD ["python", "-m", "streamlit", "run", "app/main.py", "--server.address=0.0.0.0", "--server.port=8501"]
