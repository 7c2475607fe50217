"""AT SCALE: a job (place, period, sensors) becomes one Zarr cube, tile by tile, on Dask; any step may die and be resumed.

    job      what is asked: a TOML file or the same as Python objects
    catalog  which scenes there are: a STAC API, a static catalog or plain files; hostile items are refused with a reason
    plan     what it will cost: tiles, looks, bytes, memory, time; reads no pixels and refuses early
    cluster  who works: a local Dask cluster, a scheduler's address, or one process per GPU
    run      the work: one idempotent task per tile in a bounded window, a status for every tile
    store    what is left: a sharded Zarr v3 cube, template first, a record per tile written last
    report   what it looks like: one self-contained HTML page
    cli      the same from a terminal
"""
