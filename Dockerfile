# An image for rented pods: sshd, tmux, rsync, and the Python environment of a training, ready before the first second
# is billed. Without it podctl takes the provider's own image and makes the environment there. See image/entry.sh.
#
#   make image IMAGE=registry.example/me/podctl:1     build
#   make image-push IMAGE=…                           send
#   make image-run IMAGE=…                            try it here, ssh on port 2222
#
# Python's own CUDA packages bring cuDNN, cuBLAS and NCCL, so the smallest CUDA image is enough. It wants hosts with a
# driver for CUDA 13.0 or newer.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS system

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 LC_ALL=C.UTF-8

# gcc and Python's headers are for torch.compile. Versions are not pinned: the distribution keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates curl gcc git iproute2 libc6-dev openssh-client openssh-server procps \
      python3 python3-dev python3-venv rsync tmux \
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*

# What an environment is made of, told by podctl itself, in a stage of its own: another line of podctl's code makes no
# other environment.
FROM system AS needs
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY podctl podctl
COPY remote remote
RUN mkdir -p /needs/remote \
 && cp constraints.txt /needs/ \
 && cp remote/__init__.py remote/clock.py remote/environment.py remote/files.py remote/rundir.py /needs/remote/ \
 && python3 -c 'from pathlib import Path; from podctl.source import train_requirements; print(*train_requirements(Path()), sep="\n")' \
      > /needs/requirements.txt

FROM system
COPY --from=needs /needs /opt/podctl/tool
# Stamped with the hash by which a run finds that it fits (remote/environment.py).
RUN python3 /opt/podctl/tool/remote/environment.py make /opt/podctl/tool /opt/podctl/env

COPY --chmod=755 image/entry.sh /opt/podctl/entry.sh
WORKDIR /workspace
EXPOSE 22
# CMD, not ENTRYPOINT: a provider's start command takes its place, and ends in it.
CMD ["/opt/podctl/entry.sh"]
