"""One training step of a single shot detector in plain PyTorch on the CPU: what `scripts/bench step` measures beside Coati's.

    python torch_step.py MODEL [--batch 8] [--threads 2] [--steps 8] [--warmup 3] [--repeats 3] [--channels-last]

MODEL is ssd_mobilenet_v1, ssd_mobilenet_v2 (300 x 300) or ssd_resnet50_v1_fpn (320 x 320). The networks have the layers, channels and anchors of
the reference's; padding is symmetric where TensorFlow's is not, which costs the same. The loss is smooth L1 plus sigmoid cross entropy over
all anchors. Data is made once. Prints one JSON line.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 3


def conv(inputs, outputs, kernel=1, stride=1, groups=1, activation=nn.ReLU6):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.0003),
    ]
    if activation is not None:
        layers.append(activation(inplace=True))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """MobileNet v2's block; its expansion is kept, since a feature map is taken from one."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.expand = conv(inputs, inner) if expansion > 1 else nn.Identity()
        self.own = conv(inner, inner, 3, stride, groups=inner)
        self.project = conv(inner, outputs, activation=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        wide = self.expand(x)
        y = self.project(self.own(wide))
        return (y + x if self.residual else y), wide


class Extras(nn.ModuleList):
    def __init__(self, inputs):
        super().__init__()
        for outputs in (512, 256, 256, 128):
            self.append(nn.Sequential(conv(inputs, outputs // 2), conv(outputs // 2, outputs, 3, 2)))
            inputs = outputs


class Heads(nn.Module):
    """A pair of predictors for each map."""

    def __init__(self, depths, anchors):
        super().__init__()
        self.boxes = nn.ModuleList(nn.Conv2d(d, 4 * a, 1) for d, a in zip(depths, anchors))
        self.classes = nn.ModuleList(nn.Conv2d(d, (CLASSES + 1) * a, 1) for d, a in zip(depths, anchors))

    def forward(self, maps):
        return gathered([b(m) for b, m in zip(self.boxes, maps)], [c(m) for c, m in zip(self.classes, maps)])


def gathered(boxes, classes):
    rows = lambda parts, width: torch.cat([p.permute(0, 2, 3, 1).reshape(len(p), -1, width) for p in parts], 1)
    return rows(boxes, 4), rows(classes, CLASSES + 1)


class MobileNetV1(nn.Module):
    size = 300

    def __init__(self):
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
        blocks, inputs = [conv(3, 32, 3, 2)], 32
        for outputs, stride in plan:
            blocks.append(nn.Sequential(conv(inputs, inputs, 3, stride, groups=inputs), conv(inputs, outputs)))
            inputs = outputs
        self.first, self.second = nn.Sequential(*blocks[:12]), nn.Sequential(*blocks[12:])
        self.extras = Extras(1024)
        self.heads = Heads((512, 1024, 512, 256, 256, 128), (3, 6, 6, 6, 6, 6))

    def forward(self, x):
        maps = [self.first(x)]
        maps.append(self.second(maps[-1]))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return self.heads(maps)


class MobileNetV2(nn.Module):
    size = 300

    def __init__(self):
        super().__init__()
        plan = [(16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6)] + [(32, 1, 6)] * 2 + [(64, 2, 6)] + [(64, 1, 6)] * 3
        plan += [(96, 1, 6)] * 3 + [(160, 2, 6)] + [(160, 1, 6)] * 2 + [(320, 1, 6)]
        self.stem, self.blocks, inputs = conv(3, 32, 3, 2), nn.ModuleList(), 32
        for outputs, stride, expansion in plan:
            self.blocks.append(Residual(inputs, outputs, stride, expansion))
            inputs = outputs
        self.last = conv(320, 1280)
        self.extras = Extras(1280)
        self.heads = Heads((576, 1280, 512, 256, 256, 128), (3, 6, 6, 6, 6, 6))

    def forward(self, x):
        x = self.stem(x)
        maps = []
        for index, block in enumerate(self.blocks):
            x, wide = block(x)
            if index == 13:
                maps.append(wide)
        maps.append(self.last(x))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return self.heads(maps)


class Bottleneck(nn.Module):
    def __init__(self, inputs, depth, stride):
        super().__init__()
        relu = nn.ReLU
        self.shortcut = conv(inputs, 4 * depth, activation=None) if inputs != 4 * depth else nn.Identity()
        self.body = nn.Sequential(
            conv(inputs, depth, activation=relu), conv(depth, depth, 3, activation=relu), conv(depth, 4 * depth, activation=None)
        )

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class Tower(nn.Module):
    """Four shared convolutions; each map has batch norms of its own."""

    def __init__(self, levels):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1, bias=False) for _ in range(4))
        norm = lambda: nn.BatchNorm2d(256, eps=0.001, momentum=0.0003)
        self.norms = nn.ModuleList(nn.ModuleList(norm() for _ in range(4)) for _ in range(levels))

    def forward(self, x, level):
        for convolution, norm in zip(self.convolutions, self.norms[level]):
            x = F.relu6(norm(convolution(x)), inplace=True)
        return x


class ResNet50Fpn(nn.Module):
    size = 320

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 64, 7, 2, activation=nn.ReLU)
        self.blocks, inputs = nn.ModuleList(), 64
        for units, depth in zip((3, 4, 6, 3), (64, 128, 256, 512)):
            self.blocks.append(nn.Sequential(*(Bottleneck(inputs if i == 0 else 4 * depth, depth, 1) for i in range(units))))
            inputs = 4 * depth
        self.projections = nn.ModuleList(nn.Conv2d(d, 256, 1) for d in (512, 1024, 2048))
        self.smoothing = nn.ModuleList(conv(256, 256, 3) for _ in range(2))
        self.coarse = nn.ModuleList(conv(256, 256, 3, 2) for _ in range(2))
        self.towers = nn.ModuleList(Tower(5) for _ in range(2))
        self.boxes = nn.Conv2d(256, 6 * 4, 3, padding=1)
        self.classes = nn.Conv2d(256, 6 * (CLASSES + 1), 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            maps.append(x)
            if index < 3:
                # The reference's stride lies in the last unit of a block.
                x = x[:, :, ::2, ::2]
        levels = [projection(m) for projection, m in zip(self.projections, maps[1:])]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0)
        levels = [self.smoothing[0](levels[0]), self.smoothing[1](levels[1]), levels[2]]
        for coarse in self.coarse:
            levels.append(coarse(levels[-1]))
        boxes = [self.boxes(self.towers[0](m, i)) for i, m in enumerate(levels)]
        classes = [self.classes(self.towers[1](m, i)) for i, m in enumerate(levels)]
        return gathered(boxes, classes)


MODELS = {"ssd_mobilenet_v1": MobileNetV1, "ssd_mobilenet_v2": MobileNetV2, "ssd_resnet50_v1_fpn": ResNet50Fpn}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    for name, value in (("batch", 8), ("threads", 2), ("steps", 8), ("warmup", 3), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = MODELS[args.model]().train()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0004, momentum=0.9)
    images = (torch.rand(args.batch, 3, model.size, model.size) * 2 - 1).contiguous(memory_format=layout)
    with torch.no_grad():
        anchors = model(images[:2])[0].shape[1]
    matched = (torch.rand(args.batch, anchors) < 0.01).float()
    codes = torch.randn(args.batch, anchors, 4)
    labels = torch.randint(1, CLASSES + 1, (args.batch, anchors)) * matched.long()
    one_hot = F.one_hot(labels, CLASSES + 1).float()

    def step():
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        boxes, classes = model(images)
        box = (F.smooth_l1_loss(boxes, codes, reduction="none").sum(-1) * matched).sum()
        loss = (box + F.binary_cross_entropy_with_logits(classes, one_hot, reduction="sum")) / matched.sum().clamp(min=1.0)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        return [1e3 * part for part in (end - begun, forward - begun, backward - forward, end - backward)]

    for _ in range(args.warmup):
        step()
    repeats = []
    for _ in range(args.repeats):
        steps = [step() for _ in range(args.steps)]
        repeats.append([statistics.median(part) for part in zip(*steps)])
    total = [repeat[0] for repeat in repeats]
    middle = [statistics.median(part) for part in zip(*repeats)]
    found = {
        "model": args.model,
        "step_ms": {"median": middle[0], "min": min(total), "max": max(total)},
        "forward_ms": middle[1],
        "backward_ms": middle[2],
        "update_ms": middle[3],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3,
        "anchors": anchors,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
