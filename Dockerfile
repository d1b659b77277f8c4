# The service, without training. Build from the repository root:
#   docker build -t caspl-serve .
# Make an API key; it is printed once, the file keeps its hash. The store begins empty, so the first key must be able to
# fill it. Only the service may read the file:
#   docker run --rm --user "$(id -u)" -v "$PWD:/out" caspl-serve caspl keys new /out/caspl-keys \
#       --scope classify --scope publish --scope activate --scope rollback --scope metrics
#   sudo chown 65532 caspl-keys
# Run on a GPU (leave out --gpus for the CPU); /weights keeps downloaded weights. The restart is part of the design: the
# process ends when its device fails or hangs.
#   docker run --detach --name caspl --restart unless-stopped --gpus all -p 8000:8000 -e CASPL_PRETRAINED=openai \
#       -v caspl-store:/store -v caspl-weights:/weights \
#       --mount type=bind,src="$PWD/caspl-keys",dst=/run/secrets/caspl-keys,readonly caspl-serve
# Stop it with `docker stop --time 35 caspl`; open requests finish first.
FROM python:3.11-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/caspl
ENV PATH=/opt/caspl/bin:$PATH
WORKDIR /src

# Dependencies in a layer of their own, so that code changes do not download torch again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['serve'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md ./
COPY caspl caspl
COPY prompt_store prompt_store
COPY prompted_clip prompted_clip
COPY service service
RUN pip install --no-deps ".[serve]" && pip check


FROM python:3.11-slim

RUN groupadd --gid 65532 caspl \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /weights --shell /usr/sbin/nologin caspl \
    && install -d -o 65532 -g 65532 -m 0750 /store /weights
COPY --from=build /opt/caspl /opt/caspl
ENV PATH=/opt/caspl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/weights \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /store
VOLUME ["/store", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-P", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["caspl", "serve", "--host", "0.0.0.0", "--keys-file", "/run/secrets/caspl-keys", "--store", "/store"]
