"""Finished clips as files for people and editors: named by their shot, with masters, sound, stills and a table.

    selection = select_clips(out, None, tell)        # the finished clips of the job's list
    plan = plan_export(selection, folder, options)   # names, checked before anything is written
    export(plan, options, reader)                    # files

options.py     what is written of each clip
names.py       from a clip's parameters and `meta_` columns to a name that every file system takes
selection.py   which clips: all that are finished, or those of a list of picks
planning.py    which files are written, and from what
sources.py     frames and sound: of kept latents, or of the MP4
writing.py     copies, links, encoded videos, WAV and PNG
table.py       the CSV
"""
