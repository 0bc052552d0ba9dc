"""The viewer: a run's rollout trees as one HTML page, or served while it trains.

__main__  the command
page      builds the page
data      the page's data
server    serves a run in progress
"""
