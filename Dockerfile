# The service, without training. docs/containers.md has the build arguments and how to run it; from the repository root:
#   docker build -t caspl-serve .
# Make an API key; it is printed once, the file keeps its hash. The store begins empty, so the first key must be able to
# fill it:
#   mkdir secrets && docker run --rm --user "$(id -u):0" -v "$PWD/secrets:/out" caspl-serve caspl keys new /out/keys.json \
#       --scope classify --scope publish --scope activate --scope rollback --scope teach
# Run on a GPU (leave out --gpus for the CPU). The restart is part of the design: the process ends when its device fails
# or hangs.
#   docker run --detach --name caspl --user "$(id -u):0" --read-only --tmpfs /tmp --restart unless-stopped --gpus all \
#       -p 8000:8000 -e CASPL_PRETRAINED=openai -v caspl-store:/store -v caspl-weights:/weights \
#       -v "$PWD/secrets:/run/secrets/caspl:ro" caspl-serve
# Stop it with `docker stop -t 35 caspl`; open requests finish first.
ARG BASE=python:3.11-slim
FROM ${BASE} AS dependencies

# A package index with another build of torch than the locked one, which needs CUDA, such as PyTorch's CPU index.
ARG TORCH_INDEX=
# The versions to take from there; default: the locked ones.
ARG TORCH=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# In a layer of their own: a new version of the code downloads and ships no dependencies again.
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/caspl \
    && if [ -n "$TORCH_INDEX$TORCH" ]; then \
        PIP_INDEX_URL="$TORCH_INDEX" pip --python /opt/caspl/bin/python install --no-deps \
            ${TORCH:-$(grep -oE '^(torch|torchvision)==[^ ]+' requirements.lock)} \
        && awk '/^[a-z]/ {drop = /^(torch|torchvision|triton)==|^(nvidia|cuda)-/} !drop' requirements.lock > rest.lock; \
    else cp requirements.lock rest.lock; fi \
    && pip --python /opt/caspl/bin/python install --no-deps --only-binary :all: --require-hashes --requirement rest.lock


FROM dependencies AS wheel

COPY pyproject.toml README.md ./
COPY caspl caspl
COPY prompt_store prompt_store
COPY prompted_clip prompted_clip
COPY service service
RUN pip --python /opt/caspl/bin/python wheel --no-deps --no-build-isolation --wheel-dir /dist .


FROM ${BASE}

# The group 0 may write: OpenShift runs images as a user without a name in this group.
RUN install -d -o 65532 -g 0 -m 0770 /store /weights
COPY --from=dependencies /opt/caspl /opt/caspl
COPY --from=wheel /dist /dist
RUN pip --python /opt/caspl/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl \
    && pip --python /opt/caspl/bin/python check
ENV PATH=/opt/caspl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/weights \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:0
WORKDIR /store
VOLUME ["/store", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-P", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["caspl", "serve", "--host", "0.0.0.0", "--keys-file", "/run/secrets/caspl/keys.json", "--store", "/store"]
