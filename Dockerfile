# The dashboard on the shipped models; docs/operation.md tells how to run it.
# CPU by default. For CUDA: --build-arg TORCH_INDEX= (torch as its makers publish it, with CUDA)
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What is written goes below /data, the volume, and /tmp; the rest may be read-only. Uploads are
# parted from their forms in TMPDIR: not in /tmp, which may be memory.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 MALLOC_ARENA_MAX=2 \
    SAMSVAE_RUNS=/data/runs SAMSVAE_DATA_DIRS=/data/files SAMSVAE_CACHE=/data/cache \
    TMPDIR=/data/tmp \
    NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib TRITON_CACHE_DIR=/data/cache/triton \
    STREAMLIT_SERVER_ADDRESS=0.0.0.0 STREAMLIT_SERVER_PORT=8501 STREAMLIT_SERVER_HEADLESS=true

# On a GPU, training is quicker with a C compiler, by which Triton builds what launches its kernels.
RUN case "$TORCH_INDEX" in */cpu) ;; *) apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*;; esac

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
RUN pip install --no-deps -e .
RUN useradd --uid 1000 --create-home samsvae \
 && mkdir -p /data/runs /data/files /data/cache /data/tmp && chown -R samsvae:samsvae /data
USER samsvae

VOLUME /data
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; b = os.environ.get('STREAMLIT_SERVER_BASE_URL_PATH', '').strip('/'); u.urlopen('http://127.0.0.1:' + os.environ['STREAMLIT_SERVER_PORT'] + '/' + (b + '/' if b else '') + '_stcore/health', timeout=4)"]
CMD ["python", "-m", "streamlit", "run", "app/serve.py"]
