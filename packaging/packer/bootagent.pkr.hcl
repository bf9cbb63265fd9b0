# An Amazon machine image: Debian 12 with bootagent and your configuration in it.
#
#   packaging/build deb
#   packer init packaging/packer
#   packer build -var deb=dist/bootagent_….deb -var config=bootagent.toml packaging/packer
#
# Launch from it with an instance profile that has the policies of packaging/iam, and with tags allowed in instance
# metadata (InstanceMetadataTags=enabled), so that a boot needs no EC2 call.

variable "deb" {
  type        = string
  description = "The package, as packaging/build makes it."
}

variable "config" {
  type        = string
  description = "Becomes /etc/bootagent/config.toml."
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "architecture" {
  type        = string
  default     = "amd64"
  description = "Debian's word for it: amd64 or arm64; the instance type must be of the same."
}

variable "instance_type" {
  type    = string
  default = "t3.small"
}

source "amazon-ebs" "debian" {
  region        = var.region
  instance_type = var.instance_type
  ami_name      = "bootagent-{{isotime \"20060102150405\"}}"
  ssh_username  = "admin"

  source_ami_filter {
    filters = {
      name                = "debian-12-${var.architecture}-*"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = ["136693071363"] # Debian's account: wiki.debian.org/Cloud/AmazonEC2Image
    most_recent = true
  }

  tags = {
    Name = "bootagent"
  }
}

build {
  sources = ["source.amazon-ebs.debian"]

  provisioner "file" {
    source      = var.deb
    destination = "/tmp/bootagent.deb"
  }

  provisioner "file" {
    source      = var.config
    destination = "/tmp/config.toml"
  }

  provisioner "shell" {
    execute_command = "sudo env DEBIAN_FRONTEND=noninteractive sh -eu '{{ .Path }}'"
    inline = [
      "cloud-init status --wait",
      "apt-get --quiet update",
      "apt-get --quiet --yes install /tmp/bootagent.deb",
      "install -m 644 /tmp/config.toml /etc/bootagent/config.toml",
      "rm /tmp/bootagent.deb /tmp/config.toml",
      "bootagent check",
      "apt-get clean",
      # The next boot is another instance's first.
      "cloud-init clean --logs",
    ]
  }
}
