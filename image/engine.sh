#!/usr/bin/env bash
# Runs Docker or Podman, whichever answers. usage: engine.sh build|push|run IMAGE
set -eu
cd "$(dirname "$0")/.."

verb=${1:-} image=${2:-}
[ -n "$image" ] || { echo "usage: engine.sh build|push|run IMAGE" >&2; exit 2; }

engine=""
for candidate in ${ENGINE:-docker podman}; do
  if command -v "$candidate" >/dev/null 2>&1 && "$candidate" info >/dev/null 2>&1; then
    engine=$candidate
    break
  fi
done
[ -n "$engine" ] || {
  echo "no container engine answers here → start Docker, or install Docker or Podman (ENGINE=… names another)" >&2
  exit 9
}

case $verb in
  build) exec "$engine" build --platform linux/amd64 --tag "$image" . ;;
  push)
    case $image in
      */*) exec "$engine" push "$image" ;;
      *)
        echo "IMAGE is $image, which names no registry → make image-push IMAGE=docker.io/YOU/podctl:1" >&2
        exit 2
        ;;
    esac
    ;;
  run)
    public=$(cat ~/.ssh/id_ed25519.pub ~/.ssh/id_rsa.pub 2>/dev/null || true)
    [ -n "$public" ] || { echo "there is no public key in ~/.ssh → ssh-keygen -t ed25519" >&2; exit 9; }
    gpus=()
    ! command -v nvidia-smi >/dev/null 2>&1 || gpus=(--gpus all)
    echo "ssh -p 2222 root@127.0.0.1; Ctrl-C ends it" >&2
    exec "$engine" run --rm --interactive --tty ${gpus[@]+"${gpus[@]}"} --shm-size 8g --env PUBLIC_KEY="$public" \
      --publish 127.0.0.1:2222:22 --volume podctl-workspace:/workspace "$image"
    ;;
  *)
    echo "usage: engine.sh build|push|run IMAGE" >&2
    exit 2
    ;;
esac
