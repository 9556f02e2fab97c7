"""DAT and DAT++, Vision Transformers with Deformable Attention (github.com/LeapLabTHU/DAT)."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..modeling.channels_last import ChannelNorm, Convolution
from ..modeling.deformed_keys import DeformedKeyAttention
from ..modeling.neighborhood_attention import NeighborhoodAttention
from ..modeling.window_attention import WindowAttention
from ..toolbox import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec
from .dat_sizes import DAT_SIZES
from .dat_stage import ConvolutionalPerceptron, DATStage, Perceptron

_OUTPUTS = ("stride4", "stride8", "stride16", "stride32")
_NONE = (False,) * 4
#: What the configs of the authors name beside: parts that none of their networks has, and the
#: ratios of one of these.
_ABSENT = ("dwc_pes", "no_offs", "log_cpb", "use_cmt_mlps")
_UNUSED = "sr_ratios"


class DAT(nn.Module):
    """The four stages. Arguments have the names of the authors' code and configs."""

    def __init__(
        self,
        *,
        dim_stem: int,
        dims: Sequence[int],
        depths: Sequence[int],
        stage_spec: Sequence[Sequence[str]],
        heads: Sequence[int],
        groups: Sequence[int],
        strides: Sequence[int],
        offset_range_factor: Sequence[float],
        use_pes: Sequence[bool],
        grid: str | None = None,
        img_size: int = 224,
        patch_size: int = 4,
        expansion: int = 4,
        window_sizes: Sequence[int] = (7, 7, 7, 7),
        ksizes: Sequence[int] = (9, 7, 5, 3),
        nat_ksizes: Sequence[int] = (7, 7, 7, 7),
        fixed_pes: Sequence[bool] = _NONE,
        use_dwc_mlps: Sequence[bool] = _NONE,
        use_lpus: Sequence[bool] = _NONE,
        use_conv_patches: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **absent: Sequence[float],
    ):
        """
        What is a sequence has an entry for each of the stages, whose maps have the strides 4, 8, 16
        and 32.

        Args:
            dims: channels.
            stage_spec: a letter for each block: "L", window attention; "S", that of shifted
                windows; "D", deformable; "N", neighbourhood attention.
            groups, strides, offset_range_factor, ksizes, grid: of "D", see
                :class:`DeformedKeyAttention`.
            use_pes, fixed_pes: whether "D" has a bias, and whether an absolute one.
            img_size: side of the images that the tables of biases are made for.
            nat_ksizes: of "N".
            use_dwc_mlps, use_lpus, use_conv_patches: the convolutions of DAT++, in perceptrons,
                before blocks, and overlapping between stages.
            drop_path_rate: of the last block; it rises from 0.
            absent: what their configs name of parts that none of their networks has.

        Raises:
            InputError: for what is no such network.
        """
        super().__init__()
        for name, values in absent.items():
            if name not in (*_ABSENT, _UNUSED):
                raise InputError(f"{name} is no argument of DAT")
            if name != _UNUSED and any(values):
                raise InputError(f"{name} {list(values)}: no published DAT has it, nor is it here")
        if any(len(spec) != depth for spec, depth in zip(stage_spec, depths, strict=True)):
            raise InputError(f"stage_spec must have {list(depths)} letters, got {list(stage_spec)}")
        self.patch_proj = _stem(dim_stem, patch_size, use_conv_patches)
        last = max(1, sum(depths) - 1)
        rates = iter([drop_path_rate * block / last for block in range(sum(depths))])

        def attention(stage: int, letter: str) -> Callable[[], nn.Module]:
            dim, side = dims[stage], img_size // patch_size // 2**stage
            drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
            window = window_sizes[stage]
            if letter == "L":
                return lambda: WindowAttention(dim, heads[stage], window, **drops)
            if letter == "S":
                shift = math.ceil(window / 2)
                return lambda: WindowAttention(dim, heads[stage], window, shift=shift, **drops)
            if letter == "N":
                return lambda: NeighborhoodAttention(dim, heads[stage], nat_ksizes[stage], **drops)
            if letter == "D":
                bias = "absolute" if fixed_pes[stage] else "relative"
                return lambda: DeformedKeyAttention(
                    dim,
                    heads[stage],
                    map_size=(side, side),
                    groups=groups[stage],
                    kernel_size=ksizes[stage],
                    stride=strides[stage],
                    offset_range_factor=offset_range_factor[stage],
                    bias=bias if use_pes[stage] else "none",
                    grid=grid,
                    **drops,
                )
            raise InputError(f"stage_spec: a block is L, S, D or N, got {letter!r}")

        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            mlp = ConvolutionalPerceptron if use_dwc_mlps[i] else Perceptron
            self.stages.append(
                DATStage(
                    dims[i - 1] * 2 if i else dim_stem,
                    dim,
                    [attention(i, letter) for letter in stage_spec[i]],
                    perceptron=lambda mlp=mlp, dim=dim: mlp(dim, expansion, drop_rate),
                    local_perception=use_lpus[i],
                    drop_path_rates=[next(rates) for _ in range(depths[i])],
                )
            )
        kernel, padding = (3, 1) if use_conv_patches else (2, 0)
        self.down_projs = nn.ModuleList(
            nn.Sequential(
                Convolution(a, b, kernel, 2, padding, bias=False),
                ChannelNorm(b),
            )
            for a, b in zip(dims, dims[1:])
        )

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the outputs of the stages, (N, H_l, W_l, C_l)."""
        x = self.patch_proj(x.permute(0, 2, 3, 1))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(self.down_projs[i - 1](x) if i else x)
            maps.append(x)
        return maps


def _stem(dim: int, patch_size: int, overlapping: bool) -> nn.Sequential:
    if not overlapping:
        return nn.Sequential(Convolution(3, dim, patch_size, patch_size), ChannelNorm(dim))
    return nn.Sequential(
        Convolution(3, dim // 2, 3, patch_size // 2, 1),
        ChannelNorm(dim // 2),
        nn.GELU(),
        Convolution(dim // 2, dim, 3, patch_size // 2, 1),
        ChannelNorm(dim),
    )


class DATClassifier(DAT):
    """With the head that the published weights were trained with: norm, mean, linear layer."""

    def __init__(self, *, num_classes: int = 1000, **options):
        """`options` are those of :class:`DAT`."""
        super().__init__(**options)
        dim = options["dims"][-1]
        self.cls_norm = ChannelNorm(dim)
        self.cls_head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits, (N, num_classes)."""
        return self.cls_head(self.cls_norm(self.stage_maps(x)[-1]).mean((1, 2)))


class DATBackbone(DAT, Backbone):
    """The maps "stride4", "stride8", "stride16" and "stride32", each with a norm of its own."""

    size_divisibility = 32  # so that no stage leaves out a rest of the map before it

    def __init__(self, *, out_indices: Sequence[int] = (0, 1, 2, 3), freeze_at: int = 0, **options):
        """
        Args:
            out_indices: which of the maps to put out.
            freeze_at: so many parts are not trained: the stem, then stages with what leads to them.
            options: of :class:`DAT`.
        """
        super().__init__(**options)
        if not set(out_indices) <= {0, 1, 2, 3} or not 0 <= freeze_at <= 5:
            raise InputError(
                f"out_indices are of 0 to 3, got {list(out_indices)}; freeze_at is from 0 to 5, "
                f"got {freeze_at}"
            )
        dims = options["dims"]
        self.norms = nn.ModuleList(
            ChannelNorm(dim) if i in out_indices else nn.Identity() for i, dim in enumerate(dims)
        )
        self._shapes = {
            _OUTPUTS[i]: ShapeSpec(channels=dims[i], stride=4 * 2**i) for i in sorted(out_indices)
        }
        parts = [self.patch_proj, self.stages[0]]
        parts += [nn.ModuleList(pair) for pair in zip(self.down_projs, self.stages[1:])]
        for part in parts[:freeze_at]:
            part.requires_grad_(False)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> (N, C, H / stride, W / stride) each."""
        maps = dict(zip(_OUTPUTS, map(_channels_first, self.norms, self.stage_maps(x))))
        return {name: maps[name] for name in self._shapes}


def _channels_first(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x).permute(0, 3, 1, 2)


@BACKBONE_REGISTRY.register()
def build_dat_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """
    The network that MODEL.DAT.NAME names.

    Raises:
        InputError: when there is none of that name, or it has no such maps.
    """
    node = cfg.MODEL.DAT
    if node.NAME not in DAT_SIZES:
        raise InputError(f"MODEL.DAT.NAME must be one of {', '.join(DAT_SIZES)}, got {node.NAME!r}")
    if not node.OUT_FEATURES or not set(node.OUT_FEATURES) <= set(_OUTPUTS):
        raise InputError(
            f"MODEL.DAT.OUT_FEATURES must name some of {', '.join(_OUTPUTS)}, got "
            f"{node.OUT_FEATURES}"
        )
    return DATBackbone(
        **DAT_SIZES[node.NAME] | {"drop_path_rate": node.DROP_PATH_RATE},
        out_indices=[i for i, name in enumerate(_OUTPUTS) if name in node.OUT_FEATURES],
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
