"""What other methods score on the same pairs: measured once on the same files, 2 CPU cores, and quoted here, not run again."""

from __future__ import annotations

CIA_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")

# method: (CIA mean of six bands, Salton loo, Salton gap5, seconds per CIA case); root mean square error of reflectance
PEERS: dict[str, tuple[float | None, ...]] = {
    "STARFM": (0.0402, 0.0275, 0.0444, 3.5),  # Gao et al. 2006
    "ESTARFM": (0.0316, 0.0210, 0.0366, 0.63),  # Zhu et al. 2010
    "FSDAF": (0.0343, 0.0233, 0.0407, 1.06),  # Zhu et al. 2016
    "Fit-FC": (0.0358, None, None, 0.38),  # Wang & Atkinson 2018
    "STAIR": (0.0303, 0.0213, 0.0374, 0.05),  # Luo et al. 2018
    "STNLFFM": (0.0298, 0.0201, 0.0382, 4.5),  # Cheng et al. 2017
    "RobOt": (0.0302, 0.0200, 0.0382, None),  # Chen et al. 2023
    "VIPSTF-SW": (0.0284, 0.0199, 0.0370, 0.62),  # Wang et al. 2020
}

# green, red, nir
BOREAS = {
    "STARFM": (0.0038, 0.0045, 0.0195),
    "ESTARFM": (0.0054, 0.0048, 0.0125),
    "VIPSTF-SW": (0.0041, 0.0042, 0.0111),
}
