"""Where the facts of the adapters come from, one sentence per fact; response tables carry their own provenance."""

LANDSAT = (
    "Storage, fill, valid range, quality bits: USGS Landsat Collection 2 Level-2 science product guides (LSDS-1618, "
    "LSDS-1619).",
    "PSF: Gaussian-equivalent FWHM of the whole response INCLUDING the 30 m cell (hence cell=False) and cubic resampling: "
    "40 m OLI (modulation .33 at Nyquist), 46 m TM and ETM+ (measured 40.8-48.6 m, Schowengerdt et al. 1985, SPIE 549).",
    "Geolocation: 6 m CE90 against Sentinel-2 with the global reference, 12 m without; CE90 = 2.15 sd (Rengarajan et al. "
    "2024).",
    "Noise: product error .005 + 5 % (Vermote et al. 2016, RSE 185:46; Claverie et al. 2015, RSE 169:390), a fifth to a "
    "half of it white, the common part in offset_sd, offset_relative and gain_sd; TM and ETM+ quantise to 8 bits at a signal-to-noise ratio "
    "of 30-40.",
    "Haze: aerosol errors at optical depth .5 are 2-2.7 times those at .1 (modis-sr.ltdri.org); opacity above .3 is hazy "
    "(LSDS-1618).",
)
SENTINEL_2 = (
    "Offset, fill, scene classes: Sentinel-2 Products Specification Document 14.9 (processing baseline 04.00 of 25 January "
    "2022).",
    "PSF: modulation .28 at Nyquist (requirement .15-.30) is a blur of .4 native pixel (sd) beside the cell: FWHM 12 m at "
    "10 m, 24 m at 20 m; the 60 m band by its second moment.",
    "Geolocation: 5.1 m CE90 between dates with the global reference image; CE90 = 2.15 sd (Rengarajan et al. 2024).",
    "Noise: signal-to-noise ratios of 50-170 (ESA) and the white part of the atmospheric error .005 + 5 % (Doxani et al. "
    "2018, Remote Sensing 10:352); its common part is offset_sd, offset_relative and gain_sd.",
)
HLS = (
    "Scale, fill, Fmask bits, regridding (10 m averaged, 20 m area-weighted, 60 m replicated): HLS User Guide 2.0 "
    "(hls.gsfc.nasa.gov).",
    "L30 PSF: Landsat's 40 m, the cell included, widened by a second cubic resampling across half a pixel. S30: 30 m cell "
    "and a blur of .4 native pixel; 1.5 pixels of 20 m have a variance of 122.2 m2 per axis where the cell has 75, one of "
    "60 m has 300 and its centre lies 15 m off.",
    "Noise: the white part of the error .005 + 5 % of each source product; S30 coastal doubled, each value is stored four "
    "times.",
    "Angles: hundredths of a degree, 40000 = fill (NASA-IMPACT/hls-science-container).",
)
AIRBORNE = (
    "Channels: from each file; the example is AVIRIS-NG, 425 channels of 5.01 nm, FWHM 5.6-6.0 nm (isofit calibration "
    "file).",
    "PSF: cell of the file and a blur of 3 m, between APEX (.5 mrad), AVIRIS-NG (1 mrad) and HyMap (2.5 mrad) at 2-5 km; "
    "learnable by half.",
    "Noise: 30-35 dB against the mean spectrum; shoulders of water vapour tripled.",
    "Offset: BRDF at 17 degrees from nadir changes reflectance by 8-10 % (Roy et al. 2016 coefficients), aerosol by .005 + "
    "3-5 %.",
)
NEON = (
    "Layout, scale 10000, fill -9999, bad bands 1340-1445 and 1790-1955 nm: NEON.DOC.001288 (DP3.30006 algorithm "
    "theoretical basis).",
    "PSF: 1 mrad from 1000 m is the 1 m cell; nearest-neighbour orthorectification adds a second box of one pixel, by its "
    "variance 1/12 m2.",
    "Geolocation: half a pixel (NEON geolocation ATBD). Offset: BRDF at 17 degrees from nadir 8-10 %.",
    "Noise: 30-35 dB against the mean spectrum; shoulders of water vapour tripled. Example channels: 5.008 nm steps, FWHM "
    "5.85 nm.",
)
EMIT = (
    "Layout, GLT convention, flags: EMIT L2A Algorithm and User Guide (LP DAAC); channels 381-2493 nm, 7.44 nm steps, FWHM "
    "8.4-8.8 nm (emit-sds-l1b calibration file).",
    "PSF: 60 m field of view and nearest-neighbour orthorectification (a second 60 m box), second moments summed: FWHM 58 "
    "m, rounded up, the cell INCLUDED (hence cell=False). Geolocation: under half a pixel.",
    "Noise: the product's own per-pixel uncertainty where it exceeds .003 + 2 %; a value repeated on the map counts once.",
    "Revisit: the station's orbit has no ground-track cycle; none is predicted.",
)
MODIS = (
    "Bands 6 and 7 centre on 1628 and 2114 nm, not on the nominal 1640 and 2130.",
    "PSF: triangle along scan, twice the pixel wide, and rectangle along track (Rojas, Schowengerdt & Biggar 2002, RSE "
    "83:50-61), growing with the view on a sphere seen from 705 km; on the native cell, as the gridding keeps one look per cell.",
    "Geolocation: 50 m (1 sigma) at nadir (Wolfe et al. 2002, RSE 83:31-49).",
    "Noise: the error bar .005 + 5 % holds 87-94 % of good samples (modis-sr.ltdri.org), so it is 1.5-1.9 sigma.",
    "Storage, fill, quality bits: MOD09 and MCD43 user guides, collection 6.1, and the attributes of genuine granules.",
    "Offset: aerosol errors of .003-.018 per band at optical depth .1-.5 (modis-sr.ltdri.org), more for a view not corrected.",
    "Discrepancy: sd about .02 against Landsat on real pairs, persisting for days to weeks.",
)
MCD43 = (
    *MODIS,
    "Window: observations of 16 days weighted by quality, coverage and distance from day 9 (product abstract); the decay of 8 "
    "days and the doubled sigma of magnitude inversions are chosen.",
)
VIIRS = (
    "PSF: imagery pixels of 375 m at nadir and 800 m at the edge of the swath, aggregated on board; a blur of 500 m is chosen.",
    "Noise: .003 + .03 rho, taken over from MODIS, whose atmospheric correction VIIRS shares.",
    "Storage, fill, quality bits: VNP09 and VNP43 user guides, version 2.",
)
