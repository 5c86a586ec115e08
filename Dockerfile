# An image with a Python interpreter, its shared libraries, and the sidecar; no shell.
#
#   docker build --tag cloudrun-sidecar .                    the sidecar
#   docker build --tag cloudrun-sidecar:dev --target dev .   plus a sample service, for docker-compose.yml
#
# All Python packages are installed from the lock files, with hashes.

# The base of the build: any Debian or Ubuntu with Python 3.11 or newer.
ARG BASE=docker.io/library/debian:trixie-slim


# ---- The program, built and installed into /opt/cloudrun-sidecar ----

FROM ${BASE} AS program
ENV DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    CFLAGS=-g0 SOURCE_DATE_EPOCH=0
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev libnghttp2-dev pkg-config python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
# The build tools and the sample's SDK are in the developers' lock file; `locked` prints entries of it.
RUN printf '%s\n' '#!/bin/sh' 'for name; do sed -n "/^$name==/,/[^\\\\]$/p" requirements-dev.lock; done' \
        > /usr/local/bin/locked \
 && chmod +x /usr/local/bin/locked \
 && python3 -m venv /tools \
 && locked cython setuptools > build.lock \
 && /tools/bin/pip install --quiet --require-hashes --only-binary :all: --requirement build.lock \
 && python3 -m venv --without-pip /opt/cloudrun-sidecar \
 && /tools/bin/pip --python /opt/cloudrun-sidecar/bin/python install --quiet --no-compile \
        --require-hashes --only-binary :all: --requirement requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY proxy proxy/
# The last command fails if the compiled engine was not built.
RUN /tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /tools/bin/pip --python /opt/cloudrun-sidecar/bin/python install --quiet --no-compile --no-deps /wheel/*.whl \
 && /opt/cloudrun-sidecar/bin/python -I -c 'from proxy.http2.choice import engine_choice; print(engine_choice("nghttp2"))'


# ---- The root file system of the image ----

FROM program AS root
COPY .ci/image_root.py /
RUN python3 /image_root.py /root-of-image /opt/cloudrun-sidecar


# ---- The sidecar ----

# The emulator stays in the image: it is 0.7 MiB of about 125 MiB, and every library that it imports is one of the sidecar's.
# Nothing that serves imports it, so it takes no memory at run time.
FROM scratch AS sidecar
COPY --from=root /root-of-image /
ENV PATH=/opt/cloudrun-sidecar/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/nonroot
USER 65532:65532
# The port for Restate, and the admin port for probes and metrics. Both are on loopback by default.
EXPOSE 9081 9091
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["cloudrun-sidecar", "healthcheck"]
ENTRYPOINT ["cloudrun-sidecar"]
CMD ["serve"]


# ---- The dev stack: sidecar, emulator, and a Restate service for the emulated Cloud Run ----

FROM program AS sample
RUN locked restate-sdk > sample.lock \
 && /tools/bin/pip install --quiet --no-compile --no-deps --require-hashes --only-binary :all: \
        --target /sample --requirement sample.lock
COPY tests/demo/service.py /sample/tests/demo/
COPY tests/support/container.py /sample/tests/support/
# What is copied has the permissions that it has in the clone, and the umask there may keep it from the image's user.
RUN chmod -R a+rX /sample && mkdir /google && chown 65532:65532 /google

FROM sidecar AS dev
COPY --from=sample /sample /sample
# The emulator writes its certificate authority here. A volume that is mounted here gets the owner of this directory.
COPY --from=sample --chown=65532:65532 /google /google
ENV PYTHONPATH=/sample


# The default target.
FROM sidecar
