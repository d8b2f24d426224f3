-- about: the whole pool
-- source: DataComp baselines, no_filter
SELECT uid FROM pool
