"""Programs that a rented machine has and this one may not."""

import shlex
from pathlib import Path

MIB = {"4090": 24564, "L40S": 46068, "A100": 81920, "H100": 81559, "H200": 143771, "A40": 46068}
DRIVER = "580.65.06"

SCRIPT = """\
#!/bin/sh
# nvidia-smi of an emulated pod: lists the GPUs that the pod has.
n={count}
name={name}
mib={mib}
if [ "$n" = 0 ]; then
  echo 'No devices were found'
  exit 6
fi
fields= unit=" MiB"
for word in "$@"; do
  case "$word" in
    -L | --list-gpus)
      i=0
      while [ $i -lt $n ]; do
        echo "GPU $i: $name (UUID: GPU-00000000-0000-0000-0000-00000000000$i)"
        i=$((i + 1))
      done
      exit 0
      ;;
    --format=*nounits*) unit= ;;
    --query-gpu=*) fields=${{word#--query-gpu=}} ;;
  esac
done
i=0
while [ $i -lt $n ] && [ -n "$fields" ]; do
  line=
  old=$IFS
  IFS=,
  for field in $fields; do
    case "$field" in
      index) value=$i ;;
      name | gpu_name) value=$name ;;
      memory.total) value=$mib$unit ;;
      memory.used) value=1$unit ;;
      memory.free) value=$((mib - 1))$unit ;;
      driver_version) value={driver} ;;
      uuid) value=GPU-00000000-0000-0000-0000-00000000000$i ;;
      compute_cap) value=9.0 ;;
      *) value=0 ;;
    esac
    line="$line${{line:+, }}$value"
  done
  IFS=$old
  echo "$line"
  i=$((i + 1))
done
[ -n "$fields" ] || echo "NVIDIA-SMI {driver}  CUDA Version: 13.0  $n x $name"
"""


def write_nvidia_smi(path: Path, gpu: str, count: int) -> None:
    """A program that names so many of that type."""
    mib = next((v for k, v in MIB.items() if k in gpu), 24564)
    path.write_text(SCRIPT.format(count=count, name=shlex.quote(gpu), mib=mib, driver=DRIVER), encoding="utf-8")
    path.chmod(0o755)
