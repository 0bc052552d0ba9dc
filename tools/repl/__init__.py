"""Programs of the Python sandbox, sent into it as source. They import only each other.

boot    receives the other modules and enters one
main    starts and ends a hub
hub     forwards cells to states and enforces limits
jobs    live states, the cells that they run and their folders
patrol  evicts states and kills stray processes
usage   reads memory, CPU and disk usage from /proc
link    the hub's end of a state's channel
state   the process of one state, which forks to run a cell
cell    runs cells as an interactive interpreter would
kernel  drops capabilities and sets resource limits
filter  the seccomp filter
jail    launches the first process under sandlock
spawn   launches the first process in a container
"""
