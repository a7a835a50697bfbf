#!/usr/bin/env bash
# Tests and times heed's CUDA kernels on a machine with an NVIDIA GPU that may have neither a network nor heed's libraries.
#
#   bench/gpu.sh pack [-DCMAKE...]   where heed builds and nvcc is: builds, and puts the programs, their libraries and
#                                    this script into build/gpu/pack, and the same into build/gpu/pack.tar.gz
#   bench/gpu.sh run [FOLDER]        where the GPU is, in the tree with its pack or in the pack alone: runs the tests,
#                                    the sanitizers and the benchmarks, some 6 minutes, and writes a dated record into
#                                    FOLDER (bench/results). Beside it, where it finds PyTorch Geometric: its times
#   bench/gpu.sh resources           where nvcc is: registers, stack, spills and shared memory of the kernels
#
# HEED_DATA, where it is set, is packed: the datasets that are trained on there.
# Without a device, `run` says so and writes no record; what needs no device is tested all the same.
set -euo pipefail

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
limit_mib=60
trained='cora citeseer pubmed coauthor_physics'

say() { printf '%s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# The libraries that come with every system, with the driver or, too big to pack, with CUDA.
stays_behind='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv)|libcuda|libnvidia.*|lib(cublas|cublasLt|cusparse|nvJitLink))\.so'

pack() {
  local root build pack program name path
  root=$(dirname "$here")
  build=$root/build/gpu pack=$root/build/gpu/pack
  # Any x86-64 of the last ten years; each program finds its libraries beside itself, and so do those libraries.
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHEED_ARCH=x86-64-v3 -DHEED_CUDA=ON \
    -DCMAKE_BUILD_RPATH="\$ORIGIN/lib" -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags "$@" > /dev/null
  grep -q '^CMAKE_CUDA_COMPILER:.*=/' "$build/CMakeCache.txt" || die "no nvcc: a pack without CUDA would test nothing"
  ninja -C "$build" >&2

  rm -rf "$pack" && mkdir -p "$pack/lib" "$pack/data"
  cp "${BASH_SOURCE[0]}" "$root"/bench/peers/{peer,peer_pyg,peer_gpu,beside_gpu}.py "$pack/"
  for name in $trained; do
    if [[ -d ${HEED_DATA-}/$name ]]; then cp -r "$HEED_DATA/$name" "$pack/data/"; fi
  done
  for program in heed heed_tests; do
    strip -o "$pack/$program" "$build/$program"
    while read -r name _ path _; do
      if [[ $path == /* && ! $name =~ $stays_behind ]]; then cp -Lu "$path" "$pack/lib/$name"; fi
    done < <(ldd "$build/$program")
  done
  {
    echo "heed: $(git -C "$root" describe --always --dirty 2> /dev/null || echo unknown)"
    echo "compiler: $(nvcc --version 2> /dev/null | sed -n 's/.*release/CUDA/p' || true)"
  } > "$pack/version"

  tar -C "$build" -czf "$pack.tar.gz" pack
  local mib
  mib=$(du -sm "$pack.tar.gz" | cut -f1)
  say "$pack: $(du -sm "$pack" | cut -f1) MiB; pack.tar.gz: $mib MiB"
  ((mib <= limit_mib)) || die "the pack is larger than $limit_mib MiB"
}

# Where the machine's own CUDA keeps the libraries that were not packed.
find_libraries() {
  local name path folders=
  while read -r name _; do
    path=$(find /usr/local /opt /usr/lib -name "$name" -print -quit 2> /dev/null)
    [[ $path ]] || die "$name is not on this machine; it comes with CUDA"
    folders+=${folders:+:}$(dirname "$path")
  done < <(ldd "$1/heed_tests" | grep 'not found' || true)
  printf '%s' "$folders"
}

# What is timed: training, and the operator beside its peers. Adds to `record`.
measure() {
  local work python peers name nodes edges graphs=() shapes
  work=$(mktemp -d)
  export HEED_DATA=$pack/data PYTHONUNBUFFERED=1
  python=$(type -P python3) || python=
  peers=$python
  if [[ $python ]] && ! "$python" -c 'import torch_geometric' 2> /dev/null; then peers=; fi
  for name in $trained; do
    [[ -d $HEED_DATA/$name ]] || continue
    note "train $name, 10 runs" "^$name" "$pack/heed" train "$name" --device cuda --runs 10 --quiet
  done
  if [[ -d $HEED_DATA/cora ]]; then
    note 'train cora, 2000 epochs' '^cora' "$pack/heed" train cora --device cuda --epochs 2000 --patience 0 --quiet
    "$pack/heed" convert cora "$work/cora" --format heed > /dev/null 2>&1 || true
  fi
  for name in '100000 2000000 4x16,8x32' '1000000 20000000 4x16'; do
    read -r nodes edges shapes <<< "$name"
    note "bench, $nodes nodes, $edges edges" 'WRONG|heed:' "$pack/heed" bench gpu --nodes "$nodes" --edges "$edges" \
      --scores gat,gatv2,scaled_dot,node --shapes "$shapes" --storage fp32,bf16 --write "$work/$nodes" --json
    sed -n '/^\[/,$p' <<< "$log" > "$work/$nodes.json"
    graphs+=("$work/$nodes:$shapes")
  done
  echo '[]' > "$work/peers.json"
  if [[ $peers ]]; then
    note 'peers' 'cora|copy|Error|memory' timeout 300 "$python" "$pack/peer_gpu.py" "${graphs[@]}" --cora "$work/cora" \
      --json "$work/peers.json" --parts bandwidth,pyg,epoch,cusparse,compile
  else
    record+=$'\n'"peers: not run, no python3 with torch_geometric"
  fi
  if [[ $python ]]; then
    record+=$'\n'"heed beside its peers:"$'\n'
    record+=$("$python" "$pack/beside_gpu.py" "$work/peers.json" "$work"/1*.json 2>&1 || true)
  fi
  rm -rf "$work"
}

# Of every kernel, by pass and body, the most.
resources() {
  local root
  root=$(dirname "$here")
  for name in attention device_ops; do
    nvcc -std=c++20 -O3 -arch=sm_90 -DHEED_CUDA_ARCHITECTURES='"90"' -I"$root" -Xptxas -v -cubin -o /dev/null "$root/kernels/$name.cu" 2>&1
  done | c++filt | awk '
    /Compiling entry function/ {
      name = $0
      gsub(/.*function .(void )?|heed::|warp::|scores::|bodies::|\(anonymous namespace\)::|<unnamed>::|. for .sm_[0-9]+..*/, "", name)
      sub(/\(Call.*|\(.*long.*/, "", name)
    }
    /bytes stack frame/ { stack = $1; spill = $5 + $9 }
    /Used [0-9]+ registers/ {
      match($0, /Used [0-9]+/); used = substr($0, RSTART + 5, RLENGTH - 5) + 0
      smem = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
      printf "%5d %6d %6d %7d  %s\n", used, stack, spill, smem, name
      count++; spilled += spill > 0
    }
    END { printf "%d kernels, %d of them spill\n", count, spilled }' | sed '1i registers, bytes of stack, spills and shared memory'
}

run() {
  local pack=$here results=${1-$here/results}
  [[ -x $pack/heed_tests ]] || pack=$(dirname "$here")/build/gpu/pack
  [[ -x $pack/heed_tests ]] || die "no pack: run 'bench/gpu.sh pack' where heed builds and nvcc is"

  local libraries
  libraries=$(find_libraries "$pack")
  if [[ $libraries ]]; then export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; fi

  local device driver failed=0 record log suite
  device=$(nvidia-smi -i 0 --format=csv,noheader --query-gpu=name 2> /dev/null) || device=
  driver=$(nvidia-smi -i 0 --format=csv,noheader --query-gpu=driver_version 2> /dev/null) || driver=
  [[ $device ]] || say "no device: what needs one is skipped, and no record is written"
  record="date: $(date -u +%FT%TZ)
device: ${device:-none}
driver: ${driver:-none}
$(< "$pack/version")"

  local file
  file=$results/$(date -u +%F)-$(tr -cs 'A-Za-z0-9\n' - <<< "${device,,}").txt
  save() {  # what there is so far
    if [[ $device ]]; then mkdir -p "$results" && printf '%s\n' "$record" > "$file"; fi
  }

  # note NAME PATTERN COMMAND...: runs a test, shows its output where it fails, and keeps the lines that match.
  note() {
    local name=$1 pattern=$2 code=0
    shift 2
    log=$(timeout 900 "$@" 2>&1) || code=$?
    local verdict=passed
    if [[ $log == *'Device not supported'* ]]; then  # compute-sanitizer, on some virtual machines
      verdict='not run'
    elif ((code != 0)); then
      failed=1 verdict="FAILED, code $code"
      say "$log"
    fi
    record+=$'\n'"$name: $verdict"
    record+=$'\n'"$(grep -E "$pattern" <<< "$log" | sed 's/^/  /' || true)"
    save
  }
  for suite in cuda device; do
    note "suite $suite" 'worst|test cases:|assertions:|no device|skip' "$pack/heed_tests" --no-colors=true \
      "-ts=$suite" '-tce=*emulated*,*learned scalars*'  # which run anywhere
  done
  if [[ $device ]]; then measure; fi
  local sanitizer tool
  sanitizer=$(PATH+=:/usr/local/cuda/bin type -P compute-sanitizer) || sanitizer=
  for tool in memcheck racecheck initcheck synccheck; do
    if [[ $device && $sanitizer ]]; then
      note "$tool, each kernel once" 'SUMMARY|test cases:|cases, worst|not supported' "$sanitizer" --tool "$tool" \
        --error-exitcode 9 "$pack/heed_tests" --no-colors=true -tc='each kernel once*,weighted sums*'
    else
      record+=$'\n'"$tool: not run, $([[ $device ]] && echo 'no compute-sanitizer' || echo 'no device')"
    fi
  done

  printf '%s\n' "$record"
  if [[ $device ]]; then save && say "written to $file"; fi
  return $failed
}

case ${1-} in
  pack | run | resources) "$@" ;;
  *) die "usage: bench/gpu.sh pack [-DCMAKE...] | run [FOLDER] | resources" ;;
esac
