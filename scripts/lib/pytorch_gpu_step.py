"""One training step of SSD with ResNet 50 and a feature pyramid (ssd_resnet50_v1_fpn) in PyTorch on a GPU: forward, loss, backward, momentum.
Prints one JSON object, as `coati bench step` does.

  pytorch_gpu_step.py --batch 16 --size 640 --precision bf16 --steps 200

The same net as Coati's: slim's ResNet 50 without its last layer, levels 3 to 7 of 256 channels, towers of four 3x3 convolutions that the levels
share but for batch norm, six anchors a cell, 91 class columns; focal loss and smooth L1; channels last. Data are made once and lie on the
device. Nothing waits for the device within a step: a step's loss is read while the next one runs, and times are the device's own.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

COLUMNS, ANCHORS, DEPTH, LEVELS = 91, 6, 256, (3, 4, 5, 6, 7)


def convolution(inputs, outputs, kernel, stride=1, activation=True):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.003),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activation else nn.Sequential(*layers)


class Unit(nn.Module):
    def __init__(self, inputs, inner, outputs):
        super().__init__()
        self.shortcut = convolution(inputs, outputs, 1, activation=False) if inputs != outputs else nn.Identity()
        self.residual = nn.Sequential(
            convolution(inputs, inner, 1), convolution(inner, inner, 3), convolution(inner, outputs, 1, activation=False)
        )

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.residual(x))


class Tower(nn.Module):
    """Convolutions are shared by the levels, their batch norms are not."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(DEPTH, DEPTH, 3, padding=1, bias=False) for _ in range(4))
        norm = lambda: nn.BatchNorm2d(DEPTH, eps=0.001, momentum=0.003)
        self.norms = nn.ModuleList(nn.ModuleList(norm() for _ in self.layers) for _ in LEVELS)

    def forward(self, x, level):
        for layer, norm in zip(self.layers, self.norms[level]):
            x = F.relu6(norm(layer(x)))
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1))
        blocks, inputs = [], 64
        for inner, units in ((64, 3), (128, 4), (256, 6), (512, 3)):
            layers = []
            for _ in range(units):
                layers.append(Unit(inputs, inner, 4 * inner))
                inputs = 4 * inner
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.laterals = nn.ModuleList(nn.Conv2d(depth, DEPTH, 1) for depth in (512, 1024, 2048))
        self.smooth = nn.ModuleList(convolution(DEPTH, DEPTH, 3) for _ in range(2))
        self.coarse = nn.ModuleList(convolution(DEPTH, DEPTH, 3, 2) for _ in range(2))
        self.box_tower, self.class_tower = Tower(), Tower()
        self.box_head = nn.Conv2d(DEPTH, ANCHORS * 4, 3, padding=1)
        self.class_head = nn.Conv2d(DEPTH, ANCHORS * COLUMNS, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.03)

    def forward(self, images):
        """[N, 3, S, S] to box codes [N, anchors, 4] and class logits [N, anchors, columns]."""
        x, maps = self.stem(images), []
        for index, block in enumerate(self.blocks):
            if index:
                x = F.max_pool2d(x, 1, 2)
            x = block(x)
            maps.append(x)
        c3, c4, c5 = (lateral(m) for lateral, m in zip(self.laterals, maps[1:]))
        p4 = c4 + F.interpolate(c5, scale_factor=2, mode="nearest")
        p3 = c3 + F.interpolate(p4, scale_factor=2, mode="nearest")
        pyramid = [self.smooth[0](p3), self.smooth[1](p4), c5]
        for layer in self.coarse:
            pyramid.append(layer(pyramid[-1]))
        boxes, classes, n = [], [], images.shape[0]
        for level, m in enumerate(pyramid):
            boxes.append(self.box_head(self.box_tower(m, level)).permute(0, 2, 3, 1).reshape(n, -1, 4))
            classes.append(self.class_head(self.class_tower(m, level)).permute(0, 2, 3, 1).reshape(n, -1, COLUMNS))
        return torch.cat(boxes, 1), torch.cat(classes, 1)


def focal(logits, columns, weights):
    """Of zeros everywhere, and what the one column that should be 1 changes: no dense targets."""
    alpha, gamma = 0.25, 2.0
    zero = lambda x: (1 - alpha) * x.sigmoid() ** gamma * F.softplus(x)
    own = logits.gather(-1, columns.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    one = alpha * (-own).sigmoid() ** gamma * F.softplus(-own)
    return ((zero(logits).sum(-1) + (one - zero(own)) * (columns >= 0)) * weights).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--precision", choices=["float32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--device", default="cuda", help="cpu: only to see that this script works")
    args = parser.parse_args()

    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    torch.manual_seed(1)
    net = Net().to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0001, momentum=0.9, weight_decay=4e-5)
    images = torch.rand(args.batch, 3, args.size, args.size, device=device) * 255 - 120
    images = images.contiguous(memory_format=torch.channels_last)
    anchors = ANCHORS * sum((-(-args.size // 2**level)) ** 2 for level in LEVELS)
    columns = torch.randint(1, COLUMNS, (args.batch, anchors), device=device)
    columns = torch.where(torch.rand(args.batch, anchors, device=device) < 0.001, columns, -1)
    matched = (columns >= 0).float()
    codes = torch.randn(args.batch, anchors, 4, device=device)
    weights, normalizer = torch.ones_like(matched), matched.sum().clamp(min=1.0)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "fp16")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, kinds.get(args.precision, torch.bfloat16), enabled=args.precision in kinds):
            boxes, classes = net(images)
        box_loss = (F.smooth_l1_loss(boxes.float(), codes, reduction="none").sum(-1) * matched).sum()
        loss = (focal(classes.float(), columns, weights) + box_loss) / normalizer
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    for _ in range(args.warmup):
        step()
    times, late = [], None
    if on_gpu:
        torch.cuda.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(args.steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            loss = step()
            mark.record()
            if late is not None:
                float(late)
            late = loss
        torch.cuda.synchronize()
        times = [before.elapsed_time(after) for before, after in zip(marks, marks[1:])]
    else:
        for _ in range(args.steps):
            begun = time.monotonic()
            float(step())
            times.append(1e3 * (time.monotonic() - begun))
    median = statistics.median(times)
    print(json.dumps({
        "bench": "gpu step", "torch": torch.__version__, "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "precision": args.precision, "batch_size": args.batch, "size": args.size, "steps": args.steps,
        "step_ms": {"median": median, "min": min(times), "max": max(times)},
        "images_per_s": 1e3 * args.batch / median,
        "peak_mb": torch.cuda.max_memory_reserved() / 1e6 if on_gpu else None,
        "parameters": sum(p.numel() for p in net.parameters()),
    }))


if __name__ == "__main__":
    main()
