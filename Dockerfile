# One image for the driver (`fusion run`), the scheduler (`dask scheduler`) and the workers (`dask worker`).
#   docker build -t fusion .                                        CPU
#   docker build -t fusion:gpu --build-arg ACCELERATOR=cuda12 .     CUDA libraries included, ~4 GB more
# Pin BASE by digest (python:3.11-slim-bookworm@sha256:...) for builds that can be repeated to the byte.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG ACCELERATOR=cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/image.txt deploy/image.txt
# The installer's own lines, hashes included, are cut out of the lock.
RUN sed -n '/^uv==/,/[^\\]$/p' constraints.txt > uv.txt \
 && python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r uv.txt
# Resolved within the lock and installed only where every file matches a hash in it; wheels only, so no compiler is needed.
RUN printf 'obstore\nplanetary-computer\n' > image.in \
 && case "${ACCELERATOR}" in \
      cpu) ;; \
      cuda12) echo 'jax[cuda12]' >> image.in ;; \
      *) echo "ACCELERATOR=${ACCELERATOR} is not known: cpu or cuda12" >&2; exit 1 ;; \
    esac \
 && lock=(--constraint constraints.txt --constraint deploy/image.txt) \
 && /opt/uv/bin/uv pip compile --quiet --no-header --no-annotate --no-cache --only-binary :all: "${lock[@]}" \
      --output-file runtime.txt pyproject.toml image.in \
 && python3 -m venv --without-pip /opt/fusion \
 && /opt/uv/bin/uv pip install --python /opt/fusion/bin/python --no-cache --no-deps --only-binary :all: --compile-bytecode \
      --require-hashes "${lock[@]}" --requirements runtime.txt
COPY README.md LICENSE ./
COPY fusion fusion
COPY sensors sensors
RUN /opt/uv/bin/uv build --quiet --wheel --no-cache --require-hashes \
      --build-constraints constraints.txt --build-constraints deploy/image.txt --out-dir dist \
 && /opt/uv/bin/uv pip install --python /opt/fusion/bin/python --no-cache --no-deps --offline --compile-bytecode dist/*.whl

FROM ${BASE}
LABEL org.opencontainers.image.title="fusion" \
      org.opencontainers.image.description="Fuses satellites and aircraft into one reflectance cube with posterior uncertainty" \
      org.opencontainers.image.licenses="Apache-2.0"
# libexpat is the one system library that the rasterio wheel does not bring along; its patch level follows BASE.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libexpat1 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 fusion \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin fusion \
 && install -d -o 10001 -g 10001 /scratch /cache
COPY --from=build /opt/fusion /opt/fusion
# Everything that is written goes to /scratch and /cache: the rest of the file system may be read-only.
ENV PATH=/opt/fusion/bin:$PATH \
    HOME=/scratch \
    TMPDIR=/scratch \
    JAX_COMPILATION_CACHE_DIR=/cache \
    MPLBACKEND=Agg \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /scratch
# As process 1, Python ignores SIGTERM and turns SIGINT into an orderly stop that `fusion resume` continues.
STOPSIGNAL SIGINT
ENTRYPOINT ["fusion"]
CMD ["--help"]
