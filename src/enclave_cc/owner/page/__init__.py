"""The owner's web page, served by the KBS: what it decides and why, what it keeps, what it would decide.

Server-rendered; the one script only fetches what is new. Nothing here can do what the admin API cannot: each view shows
what one admin path shows, to roles that cover that path.
"""
