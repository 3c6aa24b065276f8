# Two images from one source: the controller (no torch) and the worker.
#
#   docker build --target controller --tag inferencerun-controller .
#   docker build --target worker --tag inferencerun-worker .
#
# Both run as uid 65532 and need no writable root file system. The worker keeps model files in INFERENCERUN_CACHE_DIR and
# scratch files in /tmp, which its pod mounts.

# Python >= 3.11 as `python3`. The images hold no CUDA: torch brings its own, and the driver comes from the node.
ARG BASE_IMAGE=python:3.13-slim-bookworm
# The same Python, with `venv`: only for the stages that build. The base itself may do without.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip uninstall --quiet --yes setuptools
COPY pyproject.toml constraints.txt ./
# The dependencies alone, one file for each image, so that their layers outlive changes of the source.
RUN /opt/venv/bin/python -c "import pathlib, tomllib; \
    project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
    extras = project['optional-dependencies']; \
    [pathlib.Path(f'{image}.txt').write_text('\n'.join(project['dependencies'] + extras[image] + extras['gcs'])) \
     for image in ('controller', 'worker')]"

# Compiled ahead: a read-only image cannot keep what it compiles, and every start would do it again. Packages may hold files
# for newer Pythons: they do not compile, and nothing imports them. pip goes last.
FROM build AS controller-dependencies
RUN /opt/venv/bin/pip install --quiet --constraint constraints.txt --requirement controller.txt \
    && /opt/venv/bin/pip uninstall --quiet --yes pip \
    && (/opt/venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true)

# Of torch, headers and tools that build extensions go (there is no compiler here), and so do its own test programs.
FROM build AS worker-dependencies
RUN /opt/venv/bin/pip install --quiet --constraint constraints.txt --requirement worker.txt \
    && /opt/venv/bin/pip uninstall --quiet --yes pip \
    && (cd /opt/venv/lib/python3*/site-packages/torch && rm -rf include share test bin/test_* bin/*Test bin/protoc*) \
    && (/opt/venv/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true)

FROM build AS source
COPY README.md LICENSE ./
COPY contract contract
COPY controller controller
COPY worker worker
COPY cli cli
RUN /opt/venv/bin/pip install --quiet --no-deps --target /app . \
    && rm -rf /app/bin \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${BASE_IMAGE} AS runtime
# A name for the uid (libraries ask for it), and no pip.
RUN echo 'inferencerun:x:65532:65532:inferencerun:/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'inferencerun:x:65532:' >> /etc/group \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip* \
        /usr/local/lib/python3.*/site-packages/setuptools* /usr/local/lib/python3.*/ensurepip
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 65532:65532
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

FROM runtime AS controller
LABEL org.opencontainers.image.title="inferencerun-controller" \
    org.opencontainers.image.description="Keeps the workers of InferenceRuns alive"
COPY --from=controller-dependencies /opt/venv /opt/venv
COPY --from=source /app /app
ENTRYPOINT ["python", "-m", "controller"]

FROM runtime AS worker
LABEL org.opencontainers.image.title="inferencerun-worker" \
    org.opencontainers.image.description="Claims shards of an InferenceRun, infers, commits checkpoints"
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=worker-dependencies /opt/venv /opt/venv
COPY --from=source /app /app
ENTRYPOINT ["python", "-m", "worker"]
