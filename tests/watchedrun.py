"""A run on a Ray of its own that has a dashboard, which tells Prometheus of the node: `RAYS_FOLDER PORT SETTINGS`."""

import sys

import ray

from lingu_ray.train import main

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=True, dashboard_port=int(sys.argv[2]), _temp_dir=sys.argv[1])
    main(sys.argv[3:])
