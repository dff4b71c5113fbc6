"""PreferencePairs: judged pairs and single items with a known gold reward and defects on dials.

Importing this registers the builder, so that `tfds.data_source("preference_pairs/flips")` finds it.
"""

from jaxreward.tasks.preference_pairs.builder import PreferencePairs, PreferencePairsConfig

Builder, Config = PreferencePairs, PreferencePairsConfig

__all__ = ["Builder", "Config", "PreferencePairs", "PreferencePairsConfig"]
