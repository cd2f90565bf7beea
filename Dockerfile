# DIBS with everything that `make` needs, so that the first command in a container is a run.
#   docker build -t dibs .                                       the CPU build of torch
#   docker build -t dibs-cuda --build-arg TORCH=cuda .           the CUDA build; run it with --gpus all
#   docker run --rm -v dibs-runs:/work/runs dibs make demo
#   docker run --rm -v dibs-runs:/work/runs dibs dibs train --train.steps 5 --output_dir runs/first
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# cpu or cuda; the index of PyPI has the CUDA build for Linux.
ARG TORCH=cpu
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/work/.venv/bin:$PATH

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make=4.3-4.1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 dibs \
    && mkdir /work \
    && chown dibs /work
USER 1000
WORKDIR /work

# The packages come first: they stay in the layer cache while the sources change. They are those of
# constraints.txt, as for `make`.
COPY --chown=dibs pyproject.toml hatch_build.py constraints.txt README.md LICENSE Makefile ./
COPY --chown=dibs src/dibs/__init__.py src/dibs/__init__.py
RUN if [ "$TORCH" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; \
    elif [ "$TORCH" != cuda ]; then echo "TORCH is cpu or cuda, not $TORCH" >&2; exit 2; fi \
    && make .venv/.installed

COPY --chown=dibs . .
# Newer sources do not make the environment old: the package is installed as a link to them.
RUN touch .venv/.installed && mkdir -p runs && dibs --version
VOLUME /work/runs
CMD ["dibs", "--help"]
