"""The viewer: a run's rollout trees as one HTML page, or served while the run trains.

__main__  the command
page      builds the HTML page
data      collects the page's data
server    serves a run in progress

assets/ holds the page's template, style and scripts.
"""
