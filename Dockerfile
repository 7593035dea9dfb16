# The image for head and workers of a cluster (cluster.yaml, configs/kuberay/rayjob.yaml); docs/cluster.md has the steps.
# openssh-client, rsync, boto3 and `ray` on the PATH of a login shell are what `ray up` needs.
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client rsync procps git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray
WORKDIR /home/ray/chexseg_ray
COPY --chown=ray chexseg_ray chexseg_ray
COPY --chown=ray jobs jobs
COPY --chown=ray configs configs
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir --constraint constraints.txt --editable . boto3 && chown ray . && ray --version
USER ray
