"""The U-Net of the MACL paper: two 3×3 convolutions a level (Ronneberger et al. 2015, with
BatchNorm), in 2D and 3D."""

from __future__ import annotations

from macl.models._unet import Settings, UNetFamily

__all__ = ["PLUGIN", "Settings", "UNet"]


class UNet(UNetFamily):
    """The encoder's maps are merged as they are."""


PLUGIN = UNet
