#!/bin/bash
export A=1
export B='a '"'"'quoted'"'"' "name"; $(touch x)
and `more`'
module load python
exec python -c 'a '"'"'quoted'"'"' "name"; $(touch x)
and `more`'
