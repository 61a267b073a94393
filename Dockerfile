# The build stage has the tools and the lock; the image has neither, only what was installed.
FROM python:3.11-slim-bookworm AS build
WORKDIR /app
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1
RUN python3 -m venv .uv && .uv/bin/pip install --no-cache-dir uv==0.13.9
COPY pyproject.toml uv.lock README.md LICENSE ./
# Dependencies first: this layer stays while only our own code changes.
RUN .uv/bin/uv sync --locked --no-dev --no-install-project --python python3
COPY wva_adapter wva_adapter
RUN .uv/bin/uv sync --locked --no-dev --no-editable --python python3

FROM python:3.11-slim-bookworm
# One BLAS thread: the matrices are tiny, and threads cost start-up time and memory.
ENV OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=build /app/.venv .venv
# A number, so that runAsNonRoot can be checked. Nothing below / is written: give tls.directory a
# volume, and run with a read-only root.
USER 65532:65532
EXPOSE 6443
ENTRYPOINT ["/app/.venv/bin/wva-adapter"]
CMD ["serve", "--config", "/etc/wva-adapter/config.yaml"]
