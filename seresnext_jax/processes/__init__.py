"""The processes of one run: they join each other, agree, and end if one of them is lost."""
