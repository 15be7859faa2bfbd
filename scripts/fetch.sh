# shellcheck shell=bash
# Resumable downloads, for the scripts that source this file.
#
#   fetch ADDRESS PART [LENGTH]   download ADDRESS to the file PART, or continue an interrupted download
#   size_of ADDRESS               print the size of a file as reported by its server
#
# PART.from contains the address and the response headers that PART began with. A part of another address or length is
# deleted. A server continues it only if its file is still the same (If-Range); otherwise the download starts again.
# Whatever a server says is matched against a pattern before it is used. A download fails if the server sends more than
# LENGTH bytes or is silent for a minute. Links and pipes are deleted and not followed.

largest=16000000000 # bytes of a file whose LENGTH is not given
silence=60          # seconds during which less than 1,000 bytes per second arrive

bytes_of() { stat -c %s "$1" 2>/dev/null || echo 0; }
is_file() { [ -f "$1" ] && [ ! -L "$1" ]; }

# These read response headers from standard input; only the last response counts, after any redirects.
header_of() {
    tr -d '\r' | awk -v name="$1:" '
        /^HTTP\// { value = "" }
        tolower($1) == name { value = substr($0, length(name) + 1); sub(/^[ \t]+/, "", value) }
        END { print value }'
}
status_of() { awk '/^HTTP\// { status = $2 } END { print status }'; }
length_of() {
    local length
    length=$(header_of content-length)
    [[ $length =~ ^[0-9]{1,18}$ ]] && echo "$((10#$length))"
}
# validator_of: print what identifies the version of a file, its strong ETag or else its date.
validator_of() {
    local headers tag date strong='^"[!#-~]*"$' rfc1123='^[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT$'
    headers=$(cat)
    tag=$(header_of etag <<<"$headers")
    date=$(header_of last-modified <<<"$headers")
    if [[ $tag =~ $strong ]]; then echo "$tag"; elif [[ $date =~ $rfc1123 ]]; then echo "$date"; fi
}

limited_curl() {
    curl --proto =http,https --fail --location --max-redirs 5 --connect-timeout 20 --speed-limit 1000 --speed-time "$silence" "$@"
}

size_of() {
    local headers
    headers=$(limited_curl --head --silent "$1") || return
    length_of <<<"$headers"
}

# curl_to PART LIMIT [OPTION...] ADDRESS: download to PART and print the response headers. The system stops writing a few
# bytes after LIMIT. A retry begins a file anew, so only what fails soon is retried.
curl_to() {
    local part=$1 limit=$2
    shift 2
    (
        trap '' XFSZ
        ulimit -Sf $((limit / 1024 + 1))
        limited_curl --retry 2 --retry-max-time $((silence / 2)) --max-filesize "$limit" \
            --progress-bar --dump-header - --output "$part" "$@"
    )
}

# continued ADDRESS PART LENGTH VALIDATOR: download the rest of a part. Returns 2 if the download must start again.
continued() {
    local headers code now
    headers=$(curl_to "$2" "$3" --continue-at - --header "If-Range: $4" "$1")
    code=$?
    case $code:$(status_of <<<"$headers") in
        0:206) ;;
        0:* | 33:* | 63:* | 22:416) return 2 ;;
        *) [ "$(bytes_of "$2")" -le "$3" ] && return 1 || return 2 ;;
    esac
    now=$(validator_of <<<"$headers")
    [ "${now:-$4}" = "$4" ] && [ "$(bytes_of "$2")" = "$3" ] || return 2
}

fetch() {
    local address=$1 part=$2 limit=${3:-$largest} length validator code found
    if is_file "$part" && is_file "$part.from" && [ "$(bytes_of "$part.from")" -lt 1000000 ] &&
        [ "$(head -n 1 "$part.from" 2>/dev/null)" = "$address" ]; then
        length=$(length_of <"$part.from")
        validator=$(validator_of <"$part.from")
        if [ -n "$length" ] && [ "$length" = "${3:-$length}" ] && [ "$length" -le "$limit" ]; then
            [ "$(bytes_of "$part")" = "$length" ] && return
            if [ -n "$validator" ] && [ "$(bytes_of "$part")" -lt "$length" ]; then
                continued "$address" "$part" "$length" "$validator"
                code=$?
                [ $code = 2 ] || return $code
            fi
        fi
    fi
    rm -f "$part" "$part.from"
    { echo "$address" && curl_to "$part" "$limit" "$address"; } >"$part.from"
    code=$?
    found=$(bytes_of "$part")
    if [ "$found" -gt "$limit" ] || { [ $code = 0 ] && [ "$found" != "${3:-$found}" ]; }; then
        echo "deleted the file from $address: its size is not the announced one or above $limit bytes" >&2
        rm -f "$part" "$part.from"
        return 1
    fi
    [ -f "$part" ] || rm -f "$part.from"
    return $code
}
