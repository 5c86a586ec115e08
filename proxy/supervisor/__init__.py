"""Processes, signals and listening sockets: everything outside a worker.

* `serve`    runs one worker in this process, or a supervisor with several worker processes
* `importing` imports what a worker runs, without what it would never use
* `workers`  the supervisor: starts workers, watches them, and ends them
* `accepting` accepts connections, and sends each to the worker with the fewest
* `process`  one worker process
* `replacing` starts workers in the place of others
* `restarts` when to start another worker in place of one that has exited
* `installed` whether another version has been installed since the start
* `watchdog` when to judge whether the event loops of workers run
* `signals`  blocked while workers start, and received as octets of a socket
* `reloading` sends new settings to all workers
* `collecting` collects what all workers have counted, and keeps what those that have ended had
* `channel`  the supervisor's end of the socket between it and one worker

The modules that serve requests are imported only in a process that serves, so that a supervisor uses little memory.
"""
