"""torch.distributed's gloo: all-reduce of float32 between processes on loopback. Prints one JSON object, as `coati bench allreduce` does.

  gloo_allreduce.py --ranks 2 --megabytes 100 --seconds 3
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WARM_UP = 2


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def work(rank, args, meet):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=args.ranks)
    values = torch.zeros(int(args.megabytes * 1e6 / 4))
    times, used, begun = [], [], time.monotonic()
    while True:
        dist.barrier()
        before, spent = time.monotonic(), cpu()
        dist.all_reduce(values)
        spent = cpu() - spent
        dist.barrier()
        times.append(time.monotonic() - before)
        used.append(spent)
        over = torch.tensor([float(time.monotonic() - begun >= args.seconds and len(times) >= WARM_UP + 5)])
        dist.broadcast(over, 0)
        if over.item():
            break
    times, used = times[WARM_UP:], torch.tensor([sum(used[WARM_UP:])])
    dist.all_reduce(used)
    if rank == 0:
        seconds = {"median": statistics.median(times), "min": min(times), "max": max(times)}
        print(json.dumps({"torch": torch.__version__, "seconds": seconds, "cpu_s": used.item() / len(times), "rounds": len(times)}), flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(args, f"{folder}/meet"), nprocs=args.ranks)


if __name__ == "__main__":
    main()
