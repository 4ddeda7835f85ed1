# shellcheck shell=bash
# For scripts that run in the test guest (tests/guest/boot): storage to test against, set up with nothing but mkdir, echo and ln.
#
#   . "$GUEST_LIB"
#
# Every function ends the script with a message when it fails. Sizes are anything numfmt reads as IEC: 64M, 1G, 4096.

guest_die() {
  echo "guest: error: $*" >&2
  exit 1
}

# guest_modules NAME…: loads kernel modules.
guest_modules() {
  modprobe -a "$@" || guest_die "cannot load $*"
}

# guest_wait SECONDS COMMAND…: runs COMMAND until it succeeds; fails (without ending the script) when the time is up.
guest_wait() {
  local until=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  shift
  until "$@"; do
    ((${EPOCHREALTIME/[.,]/} < until)) || return 1
    sleep 0.05
  done
}

guest_bytes() {
  numfmt --from=iec "$1" || guest_die "not a size: $1"
}

# ---- SCSI targets: LIO -------------------------------------------------------------------------------------------
# Backstores and targets live in configfs, where making a directory makes the thing and removing it removes it.
LIO=/sys/kernel/config/target

# lio_load: the target and the initiator, and configfs. To be called first.
lio_load() {
  guest_modules configfs target_core_mod target_core_file target_core_iblock iscsi_target_mod iscsi_tcp sd_mod sg
  mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config || guest_die "no configfs"
  mkdir -p "$LIO/iscsi" || guest_die "LIO has no iSCSI"
}

# Backstores. NAME is unique among all kinds. SERIAL is the unit serial number (VPD page 0x80). The kernel makes the NAA name
# (page 0x83) from it: 6001405, then the first 25 hexadecimal digits of SERIAL, zeroes behind them when there are fewer. So
# SERIAL=00000000000000000000000a1 has the WWN 600140500000000000000000000000a1, and serials that differ must differ there.
lio_backstore() { # KIND NAME SERIAL CONTROL
  local dir=$LIO/core/$1/$2
  mkdir -p "$dir" || guest_die "cannot make the backstore $2"
  echo "$4" >"$dir/control" || guest_die "backstore $2: the kernel refused $4"
  echo 1 >"$dir/enable" || guest_die "backstore $2: cannot enable it"
  echo "$3" >"$dir/wwn/vpd_unit_serial" || guest_die "backstore $2: the kernel refused the serial $3"
}

# lio_fileio NAME SERIAL SIZE [FILE]: a sparse file, made when it is not there (default: /var/tmp/NAME.img).
lio_fileio() {
  local file=${4:-/var/tmp/$1.img} size
  size=$(guest_bytes "$3")
  [[ -e $file ]] || truncate -s "$size" "$file" || guest_die "cannot make $file"
  lio_backstore fileio_0 "$1" "$2" "fd_dev_name=$file,fd_dev_size=$size,fd_buffered_io=1"
}

# lio_ramdisk NAME SERIAL SIZE: memory.
lio_ramdisk() {
  local size
  size=$(guest_bytes "$3")
  lio_backstore rd_mcp_0 "$1" "$2" "rd_pages=$(((size + 4095) / 4096))"
}

# lio_block NAME SERIAL DEVICE: a block device, passed through.
lio_block() {
  lio_backstore iblock_0 "$1" "$2" "udev_path=$3"
}

# lio_find NAME: the directory of a backstore.
lio_find() {
  local dir
  for dir in "$LIO"/core/*/"$1"; do
    [[ -d $dir ]] && echo "$dir" && return
  done
  guest_die "no backstore $1"
}

# lio_wwn NAME: the WWN of a backstore as the kernel makes it from its serial, in the form of udev's ID_SERIAL ("3" and the NAA name).
lio_wwn() {
  local dir serial
  dir=$(lio_find "$1") || exit 1
  serial=$(sed 's/.*: //' "$dir/wwn/vpd_unit_serial")
  serial=${serial//[^0-9a-fA-F]/}
  serial=${serial:0:25}
  printf '36001405%s%0*d\n' "${serial,,}" $((25 - ${#serial})) 0 | cut -c1-33
}

# lio_remove_backstore NAME: must not be mapped any more. The file of a fileio stays.
lio_remove_backstore() {
  local dir
  dir=$(lio_find "$1") || exit 1
  rmdir "$dir" || guest_die "cannot remove the backstore $1: is it mapped?"
}

# lio_target IQN LUN=NAME…: a target with one portal group (tag 1), open to every initiator, with those backstores mapped.
# It listens on no portal yet: lio_portal.
lio_target() {
  local iqn=$1 tpg=$LIO/iscsi/$1/tpgt_1 mapping
  shift
  mkdir -p "$tpg" || guest_die "cannot make the target $iqn"
  # Demo mode: whoever comes gets an access list of their own, with all LUNs, writable.
  echo 0 >"$tpg/attrib/authentication"
  echo 1 >"$tpg/attrib/generate_node_acls"
  echo 1 >"$tpg/attrib/cache_dynamic_acls"
  echo 0 >"$tpg/attrib/demo_mode_write_protect"
  for mapping; do
    lio_map "$iqn" "${mapping%%=*}" "${mapping#*=}"
  done
  echo 1 >"$tpg/enable" || guest_die "cannot enable the target $iqn"
}

# lio_portal IQN [ADDRESS:PORT]…: makes the target listen (default: 127.0.0.1:3260). IPv6 as [::1]:3260.
lio_portal() {
  local iqn=$1 portal
  shift
  for portal in "${@:-127.0.0.1:3260}"; do
    mkdir -p "$LIO/iscsi/$iqn/tpgt_1/np/$portal" || guest_die "cannot listen on $portal"
  done
}

# lio_remove_portal IQN ADDRESS:PORT: the target stops listening there. Sessions that stand are not touched.
lio_remove_portal() {
  rmdir "$LIO/iscsi/$1/tpgt_1/np/$2" || guest_die "cannot remove the portal $2"
}

# lio_map IQN LUN NAME, lio_unmap IQN LUN: maps a backstore as a LUN, takes it away again; also while sessions stand.
lio_map() {
  local lun=$LIO/iscsi/$1/tpgt_1/lun/lun_$2 backstore
  backstore=$(lio_find "$3") || exit 1
  mkdir -p "$lun" || guest_die "cannot make the LUN $2"
  ln -s "$backstore" "$lun/$3" || guest_die "cannot map $3 as the LUN $2"
}
lio_unmap() {
  local lun=$LIO/iscsi/$1/tpgt_1/lun/lun_$2 link
  for link in "$lun"/*; do
    [[ -L $link ]] && { rm "$link" || guest_die "cannot unmap the LUN $2"; }
  done
  rmdir "$lun" || guest_die "cannot remove the LUN $2"
}

# lio_chap IQN USER PASSWORD [MUTUAL_USER MUTUAL_PASSWORD]: from now on a login needs this name and password; with the mutual pair the target
# can prove itself too. lio_no_chap IQN: open again.
lio_chap() {
  local tpg=$LIO/iscsi/$1/tpgt_1
  # printf: the kernel would take a newline as part of the name.
  printf %s "$2" >"$tpg/auth/userid" || guest_die "the kernel refused the CHAP name"
  printf %s "$3" >"$tpg/auth/password" || guest_die "the kernel refused the CHAP password"
  if (($# > 3)); then
    printf %s "$4" >"$tpg/auth/userid_mutual" || guest_die "the kernel refused the mutual CHAP name"
    printf %s "$5" >"$tpg/auth/password_mutual" || guest_die "the kernel refused the mutual CHAP password"
  fi
  echo 1 >"$tpg/attrib/authentication"
}
lio_no_chap() {
  echo 0 >"$LIO/iscsi/$1/tpgt_1/attrib/authentication"
}

# lio_disable IQN, lio_enable IQN: a disabled target drops its sessions and refuses logins; enabled again it takes them back.
lio_disable() { echo 0 >"$LIO/iscsi/$1/tpgt_1/enable" || guest_die "cannot disable $1"; }
lio_enable() { echo 1 >"$LIO/iscsi/$1/tpgt_1/enable" || guest_die "cannot enable $1"; }

# lio_remove_target IQN: with its sessions, portals and LUNs. The backstores stay.
lio_remove_target() {
  local tpg=$LIO/iscsi/$1/tpgt_1 dir
  [[ -d $tpg ]] || return 0
  lio_disable "$1"
  for dir in "$tpg"/np/*; do
    [[ ! -d $dir ]] || rmdir "$dir" || guest_die "cannot remove the portal ${dir##*/}"
  done
  for dir in "$tpg"/lun/lun_*; do
    [[ ! -d $dir ]] || lio_unmap "$1" "${dir##*lun_}"
  done
  rmdir "$tpg" "$LIO/iscsi/$1" || guest_die "cannot remove the target $1"
}

# ---- the network -------------------------------------------------------------------------------------------------
# net_cut ADDRESS: from now on nothing that is sent from ADDRESS arrives: connecting to it hangs, a session with it stalls. For
# a target, give it a portal on a loopback address of its own (127.0.0.2:3260); what comes from 127.0.0.1 goes on. net_heal ADDRESS ends it.
# (By policy routing: User-Mode Linux has no nftables.)
net_cut() {
  # The rule for local addresses comes first of all rules; move it behind ours.
  if [[ $(ip rule show) == 0:* ]]; then
    ip rule add pref 100 lookup local || guest_die "no policy routing"
    ip rule del pref 0
  fi
  ip rule add pref 50 from "$1" blackhole || guest_die "cannot cut $1"
}
net_heal() {
  ip rule del pref 50 from "$1" blackhole || guest_die "cannot heal $1"
}

# ---- multipath ---------------------------------------------------------------------------------------------------
# multipathd_up [FIND_MULTIPATHS [SETTING…]]: multipathd with its own defaults (find_multipaths strict), or those changed.
# A SETTING is a line for the section `defaults`: "retrigger_tries 0" lets it take a disk that udev has not looked at yet.
# multipathd_down: without it, and without what it remembered; the maps stay.
multipathd_up() {
  local setting
  guest_modules dm-mod dm-multipath dm-service-time dm-round-robin dm-queue-length
  mkdir -p /etc/multipath/conf.d
  {
    echo "defaults {"
    for setting in ${1+"find_multipaths $1"} "${@:2}"; do echo "  $setting"; done
    echo "}"
  } >/etc/multipath/conf.d/guest.conf
  systemctl restart multipathd || guest_die "multipathd does not start"
}
multipathd_down() {
  systemctl stop multipathd.socket multipathd.service || guest_die "multipathd does not stop"
  rm -rf /etc/multipath
}

# ---- LVM ---------------------------------------------------------------------------------------------------------
# loop_file FILE SIZE: a loop device over a sparse file (made when it is not there); prints its node.
loop_file() {
  modprobe loop || guest_die "no loop devices"
  [[ -e $1 ]] || truncate -s "$(guest_bytes "$2")" "$1" || guest_die "cannot make $1"
  losetup --find --show "$1" || guest_die "no loop device for $1"
}

# vg_on_loop VG SIZE [OPTION…]: a VG with one PV, a loop device over /var/tmp/VG.pv; prints the loop device's node. OPTIONs go to vgcreate.
vg_on_loop() {
  local vg=$1 size=$2 loop
  shift 2
  guest_modules dm-mod dm-snapshot dm-thin-pool
  loop=$(loop_file "/var/tmp/$vg.pv" "$size") || exit 1
  vgcreate --quiet --yes --devices "$loop" "$@" "$vg" "$loop" >/dev/null || guest_die "cannot make the VG $vg"
  echo "$loop"
}

# vg_remove VG: with all its LVs, its loop device and its file.
vg_remove() {
  local pv
  pv=$(losetup --noheadings --output NAME --associated "/var/tmp/$1.pv")
  vgremove --quiet --force --yes "$1" >/dev/null || guest_die "cannot remove the VG $1"
  losetup --detach "$pv" || guest_die "cannot detach $pv"
  rm "/var/tmp/$1.pv"
}

# ---- Ceph --------------------------------------------------------------------------------------------------------
# A cluster is a monitor (v1 and v2) and an OSD that keeps its data in memory, both on 127.0.0.1; the guest needs --memory 3G. Two clusters
# fit. Its name (default: ceph) gives /etc/ceph/NAME.conf and NAME.client.admin.keyring. The functions behind ceph_up work on
# the cluster that CEPH_CLUSTER names, or on `ceph`.
#
# `ceph` is a Python program that takes seconds here. So what can be is prepared in files (the keys, an OSD map with the OSD in
# it), and what must be asked is asked of python3-rados, several things at once.

# ceph_up [NAME [PORT [PORT]]]: starts a cluster, or what of it does not run. The ports are those of v1 and v2 (default: 6789 and 3300).
# Returns when its OSD is up.
ceph_up() {
  local name=${1:-ceph} port=${2:-6789} port2=${3:-3300} dir=/var/lib/ceph/guest-${1:-ceph} mon admin osd
  guest_modules rbd
  if [[ ! -e $dir/made ]]; then
    mkdir -p /etc/ceph "$dir/mon" "$dir/osd" || guest_die "cannot make $dir"
    mon=$(ceph_key) admin=$(ceph_key) osd=$(ceph_key)
    cat >"/etc/ceph/$name.conf" <<CONF
[global]
fsid = $(</proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$port2,v1:127.0.0.1:$port]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
mon allow pool size one = true
mon allow pool delete = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
log file = $dir/\$name.log
run dir = $dir
[mon.a]
mon data = $dir/mon
[osd.0]
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 4G
public addr = 127.0.0.1
cluster addr = 127.0.0.1
# What is in memory is written out when it stops, and there again when it starts.
osd fast shutdown = false
CONF
    ceph_keyring client.admin "$admin" mon 'allow *' osd 'allow *' mgr 'allow *' >"/etc/ceph/$name.client.admin.keyring"
    ceph_keyring osd.0 "$osd" mon 'allow profile osd' osd 'allow *' >"$dir/osd/keyring"
    { ceph_keyring mon. "$mon" mon 'allow *'; cat "/etc/ceph/$name.client.admin.keyring" "$dir/osd/keyring"; } >"$dir/keys"
    chmod 600 "/etc/ceph/$name.client.admin.keyring" "$dir/osd/keyring" "$dir/keys"
    {
      osdmaptool --createsimple 1 --pg-bits 0 --clobber "$dir/osdmap" &&
        ceph-mon --cluster "$name" -i a --mkfs --keyring "$dir/keys" --osdmap "$dir/osdmap" &&
        ceph-mon --cluster "$name" -i a &&
        ceph-osd --cluster "$name" -i 0 --mkfs --osd-uuid "$(</proc/sys/kernel/random/uuid)"
    } >"$dir/log" 2>&1 || guest_die "cannot make the cluster $name: $(<"$dir/log")"
    touch "$dir/made"
  fi
  [[ $(ceph_pids "$name" ceph-mon) ]] || ceph-mon --cluster "$name" -i a >"$dir/log" 2>&1 || guest_die "no monitor: $(<"$dir/log")"
  CEPH_CLUSTER=$name ceph_osd_start
}

# A new cephx key: its type 1 (AES), a time, the length, 16 bytes.
ceph_key() {
  { printf '\1\0\0\0\0\0\0\0\0\0\20\0'; head -c 16 /dev/urandom; } | base64
}

# ceph_keyring WHO KEY [SERVICE CAPABILITIES]…: the text of a keyring.
ceph_keyring() {
  printf '[%s]\n\tkey = %s\n' "$1" "$2"
  shift 2
  while (($#)); do
    printf '\tcaps %s = "%s"\n' "$1" "$2"
    shift 2
  done
}

# ceph_pids NAME PROGRAM: the processes of a cluster's daemon.
ceph_pids() {
  local process args
  for process in /proc/[0-9]*; do
    # The one that reads it may end in this moment.
    mapfile -d '' args 2>/dev/null <"$process/cmdline" || continue
    [[ ${args[0]-} == "$2" && ${args[2]-} == "$1" ]] && echo "${process#/proc/}"
  done
  return 0
}

# ceph_ask [JSON…]: gives the monitor commands (`{"prefix": "osd pool ls"}`), and prints what it answers. One that is refused ends the script.
ceph_ask() {
  python3 - "${CEPH_CLUSTER:-ceph}" "$@" <<'PYTHON' || guest_die "the monitor refused: $*"
import rados, sys
with rados.Rados(conffile=f"/etc/ceph/{sys.argv[1]}.conf", name="client.admin", clustername=sys.argv[1]) as cluster:
    for command in sys.argv[2:]:
        code, out, said = cluster.mon_command(command, b"", timeout=60)
        if out:
            print(out.decode().rstrip())
        if code:
            sys.exit(said)
PYTHON
}

# ceph_pool POOL…: makes pools.
ceph_pool() {
  local pool commands=()
  for pool; do
    commands+=("{\"prefix\": \"osd pool create\", \"pool\": \"$pool\"}"
      "{\"prefix\": \"osd pool application enable\", \"pool\": \"$pool\", \"app\": \"rbd\"}")
  done
  ceph_ask "${commands[@]}"
}

# ceph_forget_pool POOL: with all that is in it.
ceph_forget_pool() {
  ceph_ask "{\"prefix\": \"osd pool delete\", \"pool\": \"$1\", \"pool2\": \"$1\", \"yes_i_really_really_mean_it\": true}"
}

# ceph_user NAME MON-CAPABILITIES OSD-CAPABILITIES: makes client.NAME, with a keyring in /etc/ceph.
ceph_user() {
  ceph_ask "{\"prefix\": \"auth get-or-create\", \"entity\": \"client.$1\", \"caps\": [\"mon\", \"$2\", \"osd\", \"$3\"]}" \
    >"/etc/ceph/${CEPH_CLUSTER:-ceph}.client.$1.keyring"
}

# ceph_mon_stop: without its monitor a cluster lets nobody in; ceph_up starts it again.
ceph_mon_stop() {
  local name=${CEPH_CLUSTER:-ceph} pid
  pid=$(ceph_pids "$name" ceph-mon)
  [[ $pid ]] || return 0
  kill "$pid"
  guest_wait 60 ceph_gone "$pid" || guest_die "the monitor of $name does not stop"
}

# ceph_osd_stop, ceph_osd_start: without its OSD a cluster's images hang, reading and writing, until it is back with all they hold.
ceph_osd_stop() {
  local name=${CEPH_CLUSTER:-ceph} pid
  pid=$(ceph_pids "$name" ceph-osd)
  [[ $pid ]] || return 0
  kill "$pid"
  guest_wait 60 ceph_gone "$pid" || guest_die "the OSD of $name does not stop"
}
ceph_gone() { [[ ! -e /proc/$1 ]]; }
ceph_osd_start() {
  local name=${CEPH_CLUSTER:-ceph} dir=/var/lib/ceph/guest-${CEPH_CLUSTER:-ceph}
  [[ $(ceph_pids "$name" ceph-osd) ]] || ceph-osd --cluster "$name" -i 0 >"$dir/log" 2>&1 || guest_die "no OSD: $(<"$dir/log")"
  python3 - "$name" <<'PYTHON' || guest_die "the OSD of $name does not come up"
import json, rados, sys, time
with rados.Rados(conffile=f"/etc/ceph/{sys.argv[1]}.conf", name="client.admin", clustername=sys.argv[1]) as cluster:
    for _ in range(600):
        _, out, _ = cluster.mon_command('{"prefix": "osd dump", "format": "json"}', b"", timeout=60)
        if any(osd["up"] for osd in json.loads(out)["osds"]):
            sys.exit(0)
        time.sleep(0.1)
sys.exit(1)
PYTHON
}

# rbd_image POOL[/NAMESPACE]/IMAGE SIZE [FEATURE,FEATURE…]: makes an image; with the features that Ceph gives it, or with those alone.
rbd_image() {
  rbd --cluster "${CEPH_CLUSTER:-ceph}" create --size "$(guest_bytes "$2")B" ${3+--image-feature "$3"} "$1" || guest_die "cannot make the image $1"
}

# ---- instances ---------------------------------------------------------------------------------------------------
# libvirtd as Debian sets it up, with a QEMU that emulates the processor. The guests are a boot sector each, which says where it
# is, and goes off when it is asked to. A start takes seconds: libvirt forks and asks QEMU a lot.

# libvirt_up: starts it. libvirt_down: ends all instances, forgets them, and stops it.
libvirt_up() {
  systemctl start libvirtd.service || guest_die "libvirtd does not start"
}
libvirt_down() {
  local uuid
  for uuid in $(virsh list --all --uuid); do
    # One that is off cannot be ended.
    virsh destroy "$uuid" >/dev/null 2>&1 || true
    virsh undefine --managed-save --snapshots-metadata "$uuid" >/dev/null || guest_die "cannot undefine $uuid"
  done
  systemctl stop libvirtd.{socket,service} libvirtd-{ro,admin}.socket virt{log,lock}d.{socket,service} || guest_die "libvirtd does not stop"
  rm -rf /var/tmp/serial
}

# boot_sector TEXT [deaf]: a sector that prints a line on the serial port, then goes off at the power button of a machine of type `pc`,
# or (deaf) never.
boot_sector() {
  python3 - "$@" <<'PYTHON'
import sys
text, deaf = sys.argv[1], sys.argv[2:] == ["deaf"]
say = """
  31c0 8ed8          xor ax, ax;  mov ds, ax
  be0000             mov si, the text
  fc                 cld
  ac 84c0 7406       next: lodsb;  test al, al;  jz done
  baf803 ee ebf5     mov dx, 3f8h;  out dx, al;  jmp next
"""
off = """
  ba0206 b80001 ef   mov dx, 602h;  mov ax, 100h;  out dx, ax        the button's bit in PM1_EN
  fb f4              sti;  wait: hlt                                 until the clock ticks
  ba0006 ed f6c401   mov dx, 600h;  in ax, dx;  test ah, 1           the button's bit in PM1_STS
  74f6               jz wait
  ba0406 b80020 ef   mov dx, 604h;  mov ax, 2000h;  out dx, ax       soft off in PM1_CNT
  ebed               jmp wait
"""
halt = """
  fa f4 ebfd         cli;  again: hlt;  jmp again
"""
def assembled(listing):
    lines = (line[:21].split() for line in listing.splitlines())
    return bytes.fromhex("".join("".join(line) for line in lines))
code = bytearray(assembled(say) + assembled(halt if deaf else off))
code[5:7] = (0x7C00 + len(code)).to_bytes(2, "little")
code += text.encode() + b"\r\n\0"
sys.stdout.buffer.write(bytes(code).ljust(510, b"\0") + b"\x55\xaa")
PYTHON
}

# bootable FILE-OR-DEVICE TEXT [deaf]: writes such a sector to its beginning.
bootable() {
  boot_sector "${@:2}" | dd "of=$1" conv=notrunc,fsync status=none || guest_die "cannot write to $1"
}

# bootable_image POOL/IMAGE TEXT [deaf]: the same for an RBD image that is there.
bootable_image() {
  boot_sector "${@:2}" | python3 -c '
import rados, rbd, sys
cluster, (pool, image) = sys.argv[1], sys.argv[2].split("/")
with rados.Rados(conffile=f"/etc/ceph/{cluster}.conf", name="client.admin", clustername=cluster) as connection:
    with connection.open_ioctx(pool) as place, rbd.Image(place, image) as open_image:
        open_image.write(sys.stdin.buffer.read(), 0)
' "${CEPH_CLUSTER:-ceph}" "$1" || guest_die "cannot write to $1"
}

# ceph_secret USER: lets libvirt know the key of client.USER, and prints the UUID to name it by.
ceph_secret() {
  local uuid
  uuid=$(</proc/sys/kernel/random/uuid)
  virsh --quiet secret-define /dev/stdin >/dev/null <<XML || guest_die "no secret"
<secret ephemeral='no' private='yes'><uuid>$uuid</uuid><usage type='ceph'><name>$uuid</name></usage></secret>
XML
  virsh --quiet secret-set-value "$uuid" \
    "$(sed -n 's/^[[:space:]]*key = //p' "/etc/ceph/${CEPH_CLUSTER:-ceph}.client.$1.keyring")" >/dev/null 2>&1 || guest_die "no key"
  echo "$uuid"
}

# instance NAME DISK…: defines an instance, and prints its UUID. A DISK is a path, a device's or a raw file's, or `rbd:POOL/IMAGE`, or
# `rbd:POOL/IMAGE:USER:SECRET`; the first one is vda.
instance() {
  local name=$1 disk letter=97 disks='' parts
  shift
  for disk; do
    disks+="<disk device='disk' type="
    if [[ $disk == rbd:* ]]; then
      IFS=: read -r -a parts <<<"$disk"
      disks+="'network'><driver name='qemu' type='raw'/><source protocol='rbd' name='${parts[1]}'><host name='127.0.0.1' port='6789'/>"
      [[ ! ${parts[2]-} ]] || disks+="<auth username='${parts[2]}'><secret type='ceph' uuid='${parts[3]}'/></auth>"
      disks+="</source>"
    elif [[ -b $disk || $disk == /dev/* ]]; then
      disks+="'block'><driver name='qemu' type='raw' cache='none'/><source dev='$disk'/>"
    else
      disks+="'file'><driver name='qemu' type='raw'/><source file='$disk'/>"
    fi
    disks+="<target dev='vd$(printf '%b' "\\x$(printf %x $letter)")' bus='virtio'/></disk>"
    ((letter++))
  done
  mkdir -p /var/tmp/serial
  virsh --quiet define /dev/stdin >/dev/null <<XML || guest_die "cannot define $name"
<domain type='qemu'>
  <name>$name</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    $disks
    <serial type='file'><source path='/var/tmp/serial/$name'/></serial>
  </devices>
</domain>
XML
  virsh --quiet domuuid "$name" | head -n 1
}

# booted NAME: what the instance printed since its last start; waits until it has.
booted() {
  guest_wait 120 has_printed "$1" || guest_die "$1 prints nothing"
  head -n 1 "/var/tmp/serial/$1" | tr -d '\r'
}
has_printed() { [[ -e /var/tmp/serial/$1 ]] && (($(wc -l <"/var/tmp/serial/$1"))); }
