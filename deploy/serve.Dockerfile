# A rewriter in front of an LLM: docker build -f deploy/serve.Dockerfile -t rlprompt-serve:0.1.0 .
# The policy is a folder that `rlprompt export` made, mounted at /policy; its frozen LM lies in /models.
FROM python:3.11-slim-bookworm
WORKDIR /opt/rlprompt
COPY requirements-serve.txt constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt -r requirements-serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY rlprompt rlprompt
COPY envs envs
COPY policies policies
COPY rewards rewards
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home --uid 10001 rlprompt
USER rlprompt
ENV HF_HUB_OFFLINE=1 HF_HOME=/models RLPROMPT_CACHE_DIR=/models/rlprompt PYTHONUNBUFFERED=1
EXPOSE 8800
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8800/health/readiness', timeout=2)"]
ENTRYPOINT ["rlprompt", "serve", "/policy", "--host", "0.0.0.0"]
