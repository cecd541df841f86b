#!/bin/sh
# Sort the flat ILSVRC2012 validation folder into one folder a class (wnid), or back.
#
#   valprep.sh [--undo] [DIR [LABEL_LIST]]
#
# DIR         folder of ILSVRC2012_val_*.JPEG; the current folder where none is given
# LABEL_LIST  lines `name index`; else val_label.txt or val_list.txt in DIR or beside it, else the official labels
#
# Files are only moved, within DIR. It can be run again at any time: a run that was stopped goes on where it was.
set -eu
export LC_ALL=C

prep=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit "$1"
}

undo=
dir=
list=
for argument in "$@"; do
    case $argument in
        --undo) undo=1 ;;
        -h | --help) usage 0 ;;
        -*) fail "unknown option $argument; see valprep.sh --help" ;;
        *)
            if [ -z "$dir" ]; then dir=$argument
            elif [ -z "$list" ]; then list=$argument
            else fail "too many arguments; see valprep.sh --help"
            fi
            ;;
    esac
done
dir=${dir:-.}
[ -d "$dir" ] || fail "$dir: no such folder"
if [ -n "$list" ]; then # the rest runs inside DIR
    [ -f "$list" ] || fail "$list: no such file"
    list=$(CDPATH='' cd -- "$(dirname -- "$list")" && pwd)/${list##*/}
fi
cd -- "$dir"
dir=$(pwd)

# Refuse a folder that holds anything else, so that a wrong path moves nothing.
strange=$(find . -mindepth 1 ! -name 'ILSVRC2012_val_*.JPEG' ! -name 'n[0-9]*' ! -name 'val_l*.txt' ! -name '.*' |
    head -n 1)
[ -z "$strange" ] || fail "$dir: not a folder of ILSVRC2012 validation images (found ${strange#./}); nothing was moved"
[ -n "$(find . -name 'ILSVRC2012_val_*.JPEG' -type f | head -n 1)" ] ||
    fail "$dir: holds no ILSVRC2012_val_*.JPEG; give the folder of ILSVRC2012_img_val.tar's images"
strange=$(find . -mindepth 2 ! -path './n????????/ILSVRC2012_val_*.JPEG' | head -n 1)
[ -z "$strange" ] || fail "$dir: found ${strange#./}, which is no validation image in a class folder; nothing was moved"
# Nothing is ever overwritten.
twice=$(find . -type f -name 'ILSVRC2012_val_*.JPEG' | sed 's|.*/||' | sort | uniq -d | head -n 1)
[ -z "$twice" ] || fail "$dir: $twice is there twice, in two folders; nothing was moved"

flat_images() {
    find . -maxdepth 1 -type f -name 'ILSVRC2012_val_*.JPEG' | sed 's|^\./||' | sort
}

if [ -n "$undo" ]; then
    count=$(find . -mindepth 2 -type f | wc -l | tr -d ' ')
    for class in n????????; do
        [ -d "$class" ] || continue
        find "$class" -name 'ILSVRC2012_val_*.JPEG' -exec sh -c 'mv -- "$@" .' mv {} +
        rmdir -- "$class"
    done
    printf 'moved %s images back into %s\n' "$count" "$dir"
    exit 0
fi

count=$(flat_images | wc -l | tr -d ' ')
if [ "$count" -eq 0 ]; then
    printf '%s is sorted already\n' "$dir"
    exit 0
fi
if [ -z "$list" ]; then
    for place in val_label.txt val_list.txt ../val_label.txt ../val_list.txt; do
        if [ -f "$place" ]; then
            list=$place
            break
        fi
    done
fi

# One `mv` a class: names are plain letters and digits here, so they need no quoting.
moves=$(flat_images | awk -v wnids="$prep/imagenet_wnids.txt" -v official="$prep/imagenet_val_classes.txt" -v list="$list" '
    function die(text) { print text > "/dev/stderr"; failed = 1; exit 2 }
    BEGIN {
        while ((getline line < wnids) > 0) wnid[classes++] = line
        if (list != "") {
            while ((getline line < list) > 0) {
                sub(/^[ \t]+/, "", line)
                fields = split(line, part, /[ \t\r]+/)
                if (part[fields] == "") fields--
                if (fields < 1) continue
                name = part[1]
                sub(/.*\//, "", name)
                sub(/\.[A-Za-z]+$/, "", name)
                if (fields != 2 || part[2] !~ /^[0-9]+$/ || part[2] + 0 >= classes)
                    die("error: " list ": expected \"name index\" with an index below " classes ", found \"" line "\"")
                label[name] = part[2] + 0
            }
        } else
            while ((getline line < official) > 0) label[sprintf("ILSVRC2012_val_%08d", ++images)] = line + 0
    }
    {
        stem = $0
        sub(/\.JPEG$/, "", stem)
        if ($0 !~ /^ILSVRC2012_val_[0-9]+\.JPEG$/ || !(stem in label))
            die("error: " $0 ": has no label in " (list == "" ? official : list) "; nothing was moved")
        batch[label[stem]] = batch[label[stem]] " " $0
    }
    END {
        if (failed) exit 2
        for (i = 0; i < classes; i++)
            if (i in batch) print "mkdir -p " wnid[i] " && mv --" batch[i] " " wnid[i] "/"
    }
') || exit 2

printf '%s\n' "$moves" | sh -e
printf 'sorted %s images of %s into class folders; valprep.sh --undo moves them back\n' "$count" "$dir"
