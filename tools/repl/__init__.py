"""Programs of the Python sandbox. They are sent into it as source and import nothing else of ours.

boot    receives the other modules and enters one
main    starts and ends a hub
hub     knows all states, forwards cells, enforces limits
jobs    live states, running cells and folders
patrol  evicts states and ends stray processes
usage   reads memory, CPU and disk usage from /proc
link    the hub's end of a state's channel
state   the process of one state, forked to run a cell
cell    runs a cell as a Python prompt would
kernel  drops capabilities and sets resource limits
filter  the seccomp filter
jail    launches the first process under sandlock
spawn   launches the first process in a container
"""
