"""What a sensor sees of the latent cube: the data model y = W (space) x H (colour) x tau (time) z + noise.

    psf          facts of a point spread and the mass it lays on pixels      scene        one acquisition, never resampled
    geometry     native pixels on the latent map                             sensor       what an instrument is
    operator     linear maps with adjoints, one class per regime             aggregate    sensors much finer than the grid
    footprint    W from (native pixels, PSF, latent grid)                    spectral     channels as sufficient statistics
    layer        W x H x tau of one look                                     observation  (scene, sensor, cube) -> Observation
"""
