# attributegan with all commands, for one machine or a cluster. From the checkout:
#   docker build -t attributegan .
#   docker run --gpus all --shm-size 8g -v /data:/data attributegan train --config small data.shards=/data/shards run.dir=/data/runs/first
# Apptainer: configs/slurm/apptainer.def. TORCH and EXTRAS choose the build of torch and the extras (docs/install.md).
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
ARG TORCH=torch
ARG EXTRAS=all
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
COPY --from=build /wheels /wheels
COPY configs/constraints.txt /wheels/constraints.txt
# TORCH may have options of pip in it, such as an --index-url.
# hadolint ignore=SC2086
RUN pip install --constraint /wheels/constraints.txt $TORCH \
    && pip install --constraint /wheels/constraints.txt "$(ls /wheels/attributegan-*.whl)[$EXTRAS]" \
    && useradd --uid 1000 --create-home user
USER 1000
WORKDIR /home/user
ENTRYPOINT ["python", "-P", "-m", "attributegan"]
CMD ["--help"]
