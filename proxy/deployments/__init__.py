"""Deployments of Restate that are called through the sidecar: what to register, and what Restate has registered.

Only the commands `register` and `check` use this room; a process that serves does not import it.

* `target`      which deployment a route name, a host or a URL stands for (pure)
* `records`     deployments and services as Restate's admin API describes them (pure)
* `changes`     what a registration changes (pure)
* `stale`       deployments that Restate has and the sidecar refuses (pure)
* `plain_command`  the command of Restate's own CLI that does the same (pure)
* `admin_api`   calls to Restate's admin API, and its failures as sentences
"""
