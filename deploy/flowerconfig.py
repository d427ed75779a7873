"""Flower's settings: `celery -A ptc_worker flower --conf=deploy/flowerconfig.py`."""  # noqa: INP001 no package

max_tasks = 5_000  # each is kept in memory; Flower's own limit of 100,000 grows into gigabytes
inspect_timeout = 2_000.0  # milliseconds
enable_events = False  # our workers send events from their start; no reminder to each of them every 5 s
purge_offline_workers = 3_600  # seconds
read_only = True  # a task revoked behind its run record's back would be sent again; runs are cancelled by PTC
tasks_columns = "name,uuid,state,kwargs,result,received,runtime,worker"
