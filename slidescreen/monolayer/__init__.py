"""Slide -> which parts of the scan are screened and why, and tiles that cover them."""

from slidescreen.monolayer.aoi import with_aoi
from slidescreen.monolayer.area_map import check_areas, map_area
from slidescreen.monolayer.classes import MonolayerSettings
from slidescreen.monolayer.tiles import Tiling, cut_tiles

__all__ = ["MonolayerSettings", "Tiling", "check_areas", "cut_tiles", "map_area", "with_aoi"]
